"""Compare a card with the records it was generated from.

A card of this version must be what the records give, byte for byte; tables, text and metadata are compared to say where
it differs. Of a card of another version, whose words may be others, the figures are compared alone.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

from hf_unlearn import __version__
from hf_unlearn.errors import UserError
from hf_unlearn.hub.card import render_card
from hf_unlearn.hub.card_parsing import metadata, prose, table_cells
from hf_unlearn.hub.verification_report import Outcome, Statement, failed, judged, unchecked
from hf_unlearn.parsing import Fields, read_text
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
