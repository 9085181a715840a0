"""Compare a card with the records it was generated from: tables cell by cell, text, metadata, pictures."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hf_unlearn import __version__
from hf_unlearn.hub.card import card_metadata, render_card
from hf_unlearn.hub.contents import CARD_NAME
from hf_unlearn.hub.manifest import AuditRecord, UnlearningManifest
from hf_unlearn.hub.report import Line, Verdict, judged
from hf_unlearn.hub.tables import prose, table_cells

_PICTURE = re.compile(r"!\[[^\]]*\]\(([^)\s]+)\)")


def verify_card(folder: Path, manifest: UnlearningManifest, audit: AuditRecord | None) -> Iterator[Line]:
    """Check the card in a folder against the records it was generated from."""
    from huggingface_hub import ModelCard

    path = folder / CARD_NAME
    if not path.is_file():
        yield Line("card", Verdict.FAILS, f"there is no {CARD_NAME}")
        return
    text = path.read_text(encoding="utf-8")
    expected = render_card(manifest, audit)
    yield from _cells(text, expected, manifest)
    yield _prose(text, expected, manifest)
    try:
        metadata = ModelCard(text).data.to_dict()
    except ValueError as error:
        yield Line("card metadata", Verdict.FAILS, f"cannot be parsed: {error}")
    else:
        yield from _metadata(metadata, card_metadata(manifest, audit).to_dict())
    pictures = [name for name in _PICTURE.findall(text) if "://" not in name]
    missing = [name for name in pictures if not (folder / name).is_file()]
    yield judged("card pictures", not missing, f"{len(pictures)} in the repository", f"missing: {', '.join(missing)}")


def _cells(text: str, expected_text: str, manifest: UnlearningManifest) -> Iterator[Line]:
    actual, expected = table_cells(text), table_cells(expected_text)
    foreign = manifest.library_version != __version__
    wrong = {cell: value for cell, value in expected.items() if cell in actual and actual[cell] != value}
    missing = [cell for cell in expected if cell not in actual]
    added = [cell for cell in actual if cell not in expected]
    for cell, value in wrong.items():
        yield Line(f"card: {cell}", Verdict.FAILS, f"shows {actual[cell]!r}, the records say {value!r}")
    for cells, problem in ((missing, "is missing from the card"), (added, "stands in no record")):
        for cell in cells:
            verdict = Verdict.UNCHECKED if foreign else Verdict.FAILS
            detail = (
                f"the card is of hf_unlearn {manifest.library_version}, this is {__version__}" if foreign else problem
            )
            yield Line(f"card: {cell}", verdict, detail)
    if not wrong and not missing and not added:
        yield Line("card tables", Verdict.HOLDS, f"{len(expected)} figures as in the records")


def _prose(text: str, expected_text: str, manifest: UnlearningManifest) -> Line:
    if manifest.library_version != __version__:
        detail = f"the card is of hf_unlearn {manifest.library_version}, this is {__version__}"
        return Line("card text", Verdict.UNCHECKED, detail)
    actual, expected = prose(text), prose(expected_text)
    changed = [line for line in actual if line not in expected] or [line for line in expected if line not in actual]
    if not changed and actual != expected:
        changed = ["the order of its lines"]
    return judged("card text", not changed, "as generated", f"differs at: {changed[0][:120] if changed else ''}")


def _metadata(actual: Mapping[str, Any], expected: Mapping[str, Any]) -> Iterator[Line]:
    keys = [key for key in (*expected, *actual) if key != "model-index" and actual.get(key) != expected.get(key)]
    wrong = [f"{key} is {actual.get(key)!r}, the records say {expected.get(key)!r}" for key in dict.fromkeys(keys)]
    measured, recorded = _model_index(actual), _model_index(expected)
    wrong += [
        f"metric {key} is {measured.get(key)}, the records say {recorded.get(key)}"
        for key in dict.fromkeys([*recorded, *measured])
        if measured.get(key) != recorded.get(key)
    ]
    yield judged("card metadata", not wrong, f"{len(recorded)} metrics as in the records", "; ".join(wrong))


def _model_index(metadata: Mapping[str, Any]) -> dict[str, Any]:
    results = [result for model in metadata.get("model-index", ()) for result in model["results"]]
    return {metric["type"]: metric["value"] for result in results for metric in result["metrics"]}
