"""Compare a card with the records it was generated from.

A card of this version must be what the records give, byte for byte; tables, text and metadata are compared to say where
it differs. Of a card of another version, whose words may be others, the figures are compared alone.
"""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from hf_unlearn import __version__
from hf_unlearn.errors import UserError
from hf_unlearn.hub.card import render_card
from hf_unlearn.hub.verification_report import Outcome, Statement, failed, judged, unchecked
from hf_unlearn.parsing import Fields, parse_yaml, read_text
from hf_unlearn.records.file_names import CARD_NAME
from hf_unlearn.records.schemas import EvaluationRecord, UnlearningManifest

LIMITS = "## Limits"
_HTML = re.compile(r"<[!/?A-Za-z]")  # which no version writes: it could hide what else stands there
_PICTURE = re.compile(r"!\[[^\]]*\]\(([^)\s]+)\)")


def verify_card(folder: Path, manifest: UnlearningManifest, evaluation: EvaluationRecord | None) -> Iterator[Statement]:
    """Check the card in a folder against the records it was generated from."""
    path = folder / CARD_NAME
    if not path.is_file():
        yield failed("card", f"there is no {CARD_NAME}")
        return
    try:
        text = read_text(path)
    except UserError as error:
        yield failed("card", str(error))
        return
    expected = render_card(manifest, evaluation)
    compared = [*_cells(text, expected, manifest), _prose(text, expected, manifest), _metadata(text, expected)]
    yield from compared
    if manifest.library_version == __version__ and text != expected and not any(line.fails for line in compared):
        yield failed("card", f"is not what its records give: {_first_difference(text, expected)}")
    shown, due = set(_PICTURE.findall(text)), set(_PICTURE.findall(expected))
    wrong = [f"{name} is not shown" for name in sorted(due - shown)]
    wrong += [f"{name} is shown, and no record lists it" for name in sorted(shown - due)]
    wrong += [f"missing: {name}" for name in sorted(shown & due) if not (folder / unquote(name)).is_file()]
    yield judged("card pictures", not wrong, f"{len(due)} in the repository", "; ".join(wrong))


def _cells(text: str, expected_text: str, manifest: UnlearningManifest) -> Iterator[Statement]:
    actual, expected = table_cells(text), table_cells(expected_text)
    foreign = manifest.library_version != __version__
    other = f"the card is of hf_unlearn {manifest.library_version}, this is {__version__}"
    wrong = {cell: value for cell, value in expected.items() if cell in actual and actual[cell] != value}
    missing = [cell for cell in expected if cell not in actual]
    added = [cell for cell in actual if cell not in expected]
    for cell, value in wrong.items():
        yield failed(f"card: {cell}", f"shows {actual[cell]!r}, the records say {value!r}")
    gone = [
        section
        for section in dict.fromkeys(cell.section for cell in missing)
        if section not in {c.section for c in actual}
    ]
    for section in gone:
        yield failed(f"card: {section}", "the table was removed")
    for cell in (cell for cell in missing if cell.section not in gone):
        outcome = Outcome.UNCHECKED if foreign else Outcome.FAILS
        yield Statement(f"card: {cell}", outcome, other if foreign else "is missing from the card")
    for cell in added:
        hint = f" that this version reads; {other}: verify it with its own" if foreign else ""
        yield failed(f"card: {cell}", f"stands in no record{hint}")
    if wrong or missing or added:
        return
    # A line too many or too few, or one elsewhere, may open a fence that another one closed.
    unknown = foreign and prose(text) != prose(expected_text)
    hidden = "; whether the lines that this version does not know hide them is not seen"
    outcome = Outcome.UNCHECKED if unknown else Outcome.HOLDS
    yield Statement("card tables", outcome, f"{len(expected)} cells as in the records{hidden if unknown else ''}")


def _prose(text: str, expected_text: str, manifest: UnlearningManifest) -> Statement:
    actual, expected = prose(text), prose(expected_text)
    if manifest.library_version != __version__:
        other = f"the card is of hf_unlearn {manifest.library_version}, this is {__version__}"
        section = "\n".join(expected).partition(f"{LIMITS}\n")[2].partition("\n#")[0]
        if removed := [line for line in (LIMITS, *section.splitlines()) if line not in actual]:
            return failed("card text", f"{other}, and lacks the limit: {removed[0][:120]}")
        unknown = [line for line in actual if line not in expected]
        if markup := [line for line in unknown if _HTML.search(line)]:
            return failed("card text", f"{other}, and no card holds HTML: {markup[0][:120]}")
        told = f"; {len(unknown)} lines are others: {unknown[0][:120]}" if unknown else ""
        if not unknown and actual != expected:
            told = "; its lines stand in another order, or another number of times"
        return unchecked("card text", f"{other}{told}")
    changed = [line for line in actual if line not in expected] or [line for line in expected if line not in actual]
    if not changed and actual != expected:
        changed = ["the order of its lines"]
    return judged("card text", not changed, "as generated", f"differs at: {changed[0][:120] if changed else ''}")


def _metadata(text: str, expected_text: str) -> Statement:
    """Compare the metadata blocks whole, and name the metrics and fields that differ."""
    expected = metadata(expected_text)
    try:
        actual = metadata(text)
    except UserError as error:
        return failed("card metadata", f"cannot be parsed: {' '.join(str(error).split())}")
    if not isinstance(actual, dict):
        return failed("card metadata", "is missing")
    measured, recorded = _metrics(actual), _metrics(expected)
    wrong = [
        f"metric {key} is {measured.get(key)}, the records say {recorded.get(key)}"
        for key in dict.fromkeys([*recorded, *measured])
        if measured.get(key) != recorded.get(key)
    ]
    for key in dict.fromkeys((*expected, *actual)):
        if actual.get(key) != expected.get(key) and not (key == "model-index" and wrong):
            wrong.append(f"{key} is {actual.get(key)!r}, the records say {expected.get(key)!r}")
    return judged("card metadata", not wrong, f"{len(recorded)} metrics as in the records", "; ".join(wrong))


def _metrics(block: Fields) -> dict[str, object]:
    """The figures of a `model-index`; none where it has another form than a card's."""
    try:
        results = [result for model in block.get("model-index", ()) for result in model["results"]]
        return {metric["type"]: metric["value"] for result in results for metric in result["metrics"]}
    except (TypeError, KeyError):
        return {}


def _first_difference(text: str, expected: str) -> str:
    """The first line that differs, of the card or of what it should be; line ends count."""
    actual, due = text.splitlines(keepends=True), expected.splitlines(keepends=True)
    number = next(
        (i for i, pair in enumerate(zip(actual, due, strict=False)) if pair[0] != pair[1]), min(len(actual), len(due))
    )
    return f"line {number + 1} is {actual[number][:120]!r}" if number < len(actual) else f"line {number + 1} is missing"


@dataclass(frozen=True)
class Cell:
    """Where a figure stands in a card: the section, the row's first cell and the column's header."""

    section: str
    row: str
    column: str

    def __str__(self) -> str:
        return f"{self.section}, {self.row.strip('*')}, {self.column}"


def table_cells(card: str) -> dict[Cell, str]:
    """Map each cell of every table in a card, but for the rows' names, to its text.

    Nothing that a reader sees is passed over: headers are rows too, a row that repeats another's name is numbered, and
    cells that are missing from a row are empty.
    """
    cells: dict[Cell, str] = {}
    seen: Counter[tuple[str, str]] = Counter()
    section = ""
    header: list[str] = []
    ruled = False  # whether the line of dashes under the header has passed
    for line in _body(card):
        if line.startswith("#"):
            section = line.lstrip("# ")
        if not line.lstrip().startswith("|"):
            header, ruled = [], False
            continue
        row = _split(line)
        if header and not ruled and all(cell and set(cell) <= set("-:") for cell in row):
            ruled = True
            continue
        name, columns = (row[0], header) if header else (f"header {row[0]}", [])
        header = header or row
        seen[section, name] += 1
        if (number := seen[section, name]) > 1:
            name = f"{name} ({number})"
        for place in range(1, max(len(columns), len(row), 2)):
            column = columns[place] if place < len(columns) else f"column {place + 1}"
            cells[Cell(section, name, column)] = row[place] if place < len(row) else ""
    return cells


def metadata(card: str) -> Any:
    """Parse the metadata block of a card; None where there is none.

    Raises:
        UserError: It is no YAML.
    """
    lines = _lines(card)
    if not (end := _end(lines)):
        return None
    return parse_yaml("\n".join(lines[1 : end - 1]), "the metadata of the card")


def prose(card: str) -> list[str]:
    """List the lines of a card outside its metadata and tables."""
    return [line for line in _body(card) if line and not line.lstrip().startswith("|")]


def _body(card: str) -> list[str]:
    """Split off the metadata block."""
    lines = _lines(card)
    return lines[_end(lines) :]


def _lines(card: str) -> list[str]:
    """Split at the ends of lines that Markdown has, and at no other that Python knows."""
    return [line.rstrip(" \t") for line in re.split(r"\r\n|\n|\r", card)]


def _end(lines: list[str]) -> int:
    """Where the body begins: after the metadata block, if there is one."""
    return lines.index("---", 1) + 1 if lines[:1] == ["---"] and "---" in lines[1:] else 0


def _split(line: str) -> list[str]:
    """Split a table row at its pipes, but not at escaped ones."""
    inner = line.strip().replace(r"\|", "\0").removeprefix("|").removesuffix("|")
    return [cell.strip().replace("\0", "|") for cell in inner.split("|")]
