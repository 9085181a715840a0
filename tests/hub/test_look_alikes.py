"""Forgeries that look like what they are not: names, histories, and cards of another version."""

from dataclasses import replace
from pathlib import Path

import pytest
from hub.test_forged_folders import changed, failed, other_version

from hf_unlearn.hub.verification import verify_repo
from hf_unlearn.hub.verification_report import Outcome
from hf_unlearn.records.file_names import is_foreign
from hf_unlearn.records.schemas import EvaluationRecord, HistoryEntry, UnlearningManifest

NAMES = ["conf\u0456g.json", "\uff43onfig.json", "model.safetensors ", "model.s\u0430fetensors", "R\u0415ADME.md"]
NAMES += ["config\u200b.json", "config\u0301.json", "weights.bin\u202e", " handler.py"]


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_name_that_looks_like_a_published_one_is_foreign(name: str) -> None:
    assert is_foreign(name)


@pytest.mark.parametrize("name", ["\u8aac\u660e\u66f8\u8aac\u660e\u66f8.md", "notes.txt", "caf\u00e9.md", "LICENSE"])
def test_other_names_are_not(name: str) -> None:
    assert not is_foreign(name)


def test_a_look_alike_in_a_folder_fails(run: Path) -> None:
    (run / NAMES[0]).write_text("{}")
    assert failed(verify_repo(run)) == ["other weights"]


def history(run: Path, *weights: str, count: int = 3) -> list[str]:
    """What fails of a run that had these weights before, one history entry each."""
    manifest = UnlearningManifest.load(run)
    replace(EvaluationRecord.load(run), requests=()).save(run)
    request = replace(manifest.request, count=count)
    bases = ["b" * 64, *weights]
    entries = tuple(
        HistoryEntry("fine_tune", f"202{number}-01-01T00:00:00+00:00", request, sha256, bases[number])
        for number, sha256 in enumerate(weights)
    )
    changed(run, history=entries, base_model=replace(manifest.base_model, sha256=bases[-1]))
    return failed(verify_repo(run))


def test_a_history_leads_to_weights_that_the_model_never_had(run: Path) -> None:
    last = UnlearningManifest.load(run).weights_sha256
    request = UnlearningManifest.load(run).request.count
    assert "history" not in history(run, "a" * 64, "c" * 64, count=request)
    assert "history" in history(run, "a" * 64, "b" * 64), "back at the first base"
    assert "history" in history(run, "a" * 64, "c" * 64, "a" * 64), "back at the first run's"
    assert "history" in history(run, last, "c" * 64), "the last run is back"
    assert "history" in history(run, "b" * 64, "c" * 64), "the first run did nothing"


@pytest.mark.parametrize("count", [-5, 0, 10**40])
def test_every_run_was_asked_for_rows(run: Path, count: int) -> None:
    assert "unlearning.json: counts" in history(run, "a" * 64, count=count)


FENCE = "```"
HIDDEN = {
    "a fence that is a line of every card": lambda card: card.replace("\n## ", f"\n{FENCE}\n\n## ", 1),
    "a fence that is not closed": lambda card: card[::-1].replace(f"\n{FENCE}\n", "\n\n", 1)[::-1],
    "ends of lines that Markdown does not know": lambda card: card.replace("\n|", "\x0b|"),
}


@pytest.mark.parametrize("hide", HIDDEN.values(), ids=HIDDEN)
def test_a_card_of_another_version_may_hide_its_tables(run: Path, hide: object) -> None:
    other_version(hide)(run, run)  # type: ignore[arg-type]
    report = verify_repo(run)
    assert not any(line.subject == "card tables" and line.outcome is Outcome.HOLDS for line in report.statements)
