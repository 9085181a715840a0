"""The card opened in a real browser: pictures load, formulas and tables are laid out."""

import re
from pathlib import Path

import pytest
from hub.card_page import browser, to_html, visit

PROBE = """<script>addEventListener("load", () => {
  const seen = (name) => [...document.querySelectorAll(name)].filter((e) => e.getBoundingClientRect().height > 0)
  document.body.dataset.seen = JSON.stringify({
    pictures: [...document.images].map((picture) => picture.naturalWidth),
    formulas: seen("math").length,
    tables: seen("table").length,
    width: document.documentElement.scrollWidth,
  })
})</script>"""


@pytest.mark.skipif(browser() is None, reason="needs Chromium: apt-get install chromium")
def test_card_is_laid_out_in_a_browser(finished_run: Path, tmp_path: Path) -> None:
    card = (finished_run / "README.md").read_text()
    page = tmp_path / "card.html"
    page.write_text(to_html(card, finished_run) + PROBE)
    html = visit(page, tmp_path / "profile", "--dump-dom", "--window-size=1000,1000")
    seen = re.search(r'data-seen="([^"]*)"', html)
    assert seen is not None
    values = seen[1].replace("&quot;", '"')
    pictures, formulas, tables, width = re.search(
        r'\{"pictures":\[(.*)\],"formulas":(\d+),"tables":(\d+),"width":(\d+)\}', values
    ).groups()
    assert [int(number) > 100 for number in pictures.split(",")] == [True]
    assert int(formulas) >= 6
    assert int(tables) == 5
    assert int(width) <= 1000  # nothing pushes the page wider than the window
