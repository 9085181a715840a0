"""A card as the Hub would show it: its markdown as an HTML page with formulas, photographed by a headless browser."""

import shutil
import subprocess
from pathlib import Path

from latex2mathml.converter import convert
from markdown_it import MarkdownIt
from mdit_py_plugins.dollarmath import dollarmath_plugin
from mdit_py_plugins.front_matter import front_matter_plugin

STYLE = """
body { font: 16px/1.55 "DejaVu Sans", sans-serif; color: #1f2328; max-width: 54rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; margin: 1rem 0; display: block; overflow-x: auto }
th, td { border: 1px solid #d1d9e0; padding: .35rem .7rem }
code { background: #f0f2f4; padding: .1rem .3rem; font-size: 85%; overflow-wrap: anywhere }
pre { background: #f6f8fa; padding: 1rem; overflow-x: auto } pre code { background: none }
img { max-width: 100% } blockquote { border-left: .25rem solid #d1d9e0; margin: 0; padding: 0 1rem; color: #59636e }
"""


def to_html(card: str, base: Path) -> str:
    """Render a card; pictures are looked for in `base`."""
    markdown = MarkdownIt("commonmark", {"html": False}).enable("table").use(front_matter_plugin)
    markdown.use(
        dollarmath_plugin, renderer=lambda tex, how: convert(tex, "block" if how["display_mode"] else "inline")
    )
    style = f"<meta charset='utf-8'><base href='{base.as_uri()}/'><title>Model card</title><style>{STYLE}</style>"
    return f"<!doctype html>{style}{markdown.render(card)}"


def browser() -> str | None:
    """Find a Chromium."""
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def visit(page: Path, profile: Path, *options: str) -> str:
    """Open a page in a headless browser with a fresh profile, and return what it printed."""
    quiet = ["background-networking", "component-update", "sync", "quic", "gpu"]
    command = [
        browser() or "chromium",
        "--headless",
        "--no-sandbox",
        "--no-first-run",
        "--hide-scrollbars",
        f"--user-data-dir={profile}",
        *(f"--disable-{name}" for name in quiet),
        *options,
        page.as_uri(),
    ]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
