"""The README's references exist, and nothing in it is left to fill in."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_linked_files_exist():
    links = re.findall(r"\]\(((?!https?://|#)[^)]+)\)", README)
    assert links and not [link for link in links if not (ROOT / link).exists()]


def test_named_files_exist():
    named = re.findall(r"`((?:recipes|tests|hf_unlearn)/[\w/.]+\.(?:py|yaml|md))", README)
    assert named and not [name for name in named if not (ROOT / name).is_file()]


def test_modules_of_the_paper_map_exist():
    rows = [line for line in README.splitlines() if re.match(r"\| (Eq|Fig|Section|Table)", line) and "`" in line]
    names = [name for row in rows for name in re.findall(r"`((?:losses|methods|metrics|audit|runs)/[\w/]+\.py)", row)]
    assert len(names) > 8 and not [name for name in names if not (ROOT / "hf_unlearn" / name).is_file()]


def test_named_tests_exist():
    tests = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    named = re.findall(r"`(test_\w+)`", README)
    assert named and not [name for name in named if f"def {name}(" not in tests]


def test_nothing_is_left_to_fill_in():
    assert not re.findall(r"[A-Z]+_(?:SECTION|TABLE|DEMO|AUDIT|FLOOR)|SIGNALS|TODO|FIXME", README)
