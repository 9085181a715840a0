"""The references of the README and of the pages beside it exist, and nothing in them is left to fill in."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = [path for folder in (".", "recipes/*", "tests/*") for path in ROOT.glob(f"{folder}/README.md")]


@pytest.fixture(params=PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def page(request):
    return request.param


def test_all_pages_are_looked_at():
    names = {str(page.parent.relative_to(ROOT)) for page in PAGES}
    assert names >= {".", "recipes/benchmarks", "recipes/stress_tests", "recipes/accelerate_configs", "tests/faults"}


def test_linked_files_exist(page):
    links = re.findall(r"\]\(((?!https?://|#)[^)#]+)", page.read_text())
    assert not [link for link in links if not (page.parent / link).exists()]


def test_linked_headings_exist(page):
    for file, heading in re.findall(r"\]\(((?!https?://)[^)#]*)#([^)]+)\)", page.read_text()):
        titles = re.findall(r"^#+ (.*)$", ((page.parent / file) if file else page).read_text(), re.MULTILINE)
        slugs = [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles]
        assert heading in slugs


def test_named_files_exist(page):
    named = re.findall(r"`((?:recipes|tests|hf_unlearn)/[\w/.]+\.(?:py|yaml|md))", page.read_text())
    assert not [name for name in named if not (ROOT / name).is_file()]


def test_modules_of_the_paper_map_exist():
    rows = [line for line in README.splitlines() if re.match(r"\| (Eq|Fig|Section|Table)", line) and "`" in line]
    names = [name for row in rows for name in re.findall(r"`((?:losses|methods|metrics|audit|runs)/[\w/]+\.py)", row)]
    assert len(names) > 8 and not [name for name in names if not (ROOT / "hf_unlearn" / name).is_file()]


def test_named_tests_exist():
    tests = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    named = [name for page in PAGES for name in re.findall(r"`(test_\w+)`", page.read_text())]
    assert named and not [name for name in named if f"def {name}(" not in tests]


def test_nothing_is_left_to_fill_in(page):
    assert not re.findall(r"@@|[A-Z]+_(?:SECTION|TABLE|DEMO|AUDIT|FLOOR)|SIGNALS|TODO|FIXME", page.read_text())
