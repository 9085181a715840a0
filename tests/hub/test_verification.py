"""Verification names what was changed, and says plainly what it cannot see."""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from datasets import Dataset
from hub.finished_run import CAPTIONS, SALT, describe
from hub.local_hub import LocalHub

from hf_unlearn.data.requests import RemovalRequest
from hf_unlearn.errors import UserError
from hf_unlearn.hub import card as card_module
from hf_unlearn.hub import card_check
from hf_unlearn.hub.card import write_card
from hf_unlearn.hub.manifest import describe_request
from hf_unlearn.hub.manifest_check import OwnedSample
from hf_unlearn.hub.publishing import publish_run
from hf_unlearn.hub.verification import verify_repo
from hf_unlearn.hub.verification_report import Outcome, Statement, VerificationReport
from hf_unlearn.records.metric_labels import GAP_KEYS, gap_keys
from hf_unlearn.records.schemas import EvaluationRecord, RequestRecord, UnlearningManifest
from hf_unlearn.runs.evaluation import ImageTextEvaluator, ImageViewEvaluator


def subjects(report: VerificationReport) -> list[str]:
    return [line.subject for line in report.failures]


def test_everything_that_can_be_checked_of_a_fresh_run_holds(run: Path, base: Path, pictures: list[Path]) -> None:
    samples = [OwnedSample(path, (caption,)) for path, caption in zip(pictures, CAPTIONS, strict=True)]
    report = verify_repo(run, base=base, salt=SALT, samples=samples)
    assert report.ok, report.failures
    unchecked = {line.subject for line in report.statements if line.outcome is Outcome.UNCHECKED}
    own = {"data", "training", "method", "metrics", "evidence", "signature"}  # it is not signed
    assert unchecked == {*own, "other files"}, "its log"
    assert {"weights", "request", "card tables", "card text", "card metadata", "card pictures", "config.json"} < {
        line.subject for line in report.statements if line.outcome is Outcome.HOLDS
    }


def change_json(name: str, *keys: str | int, value: object) -> Callable[[Path], None]:
    def act(run: Path) -> None:
        data = json.loads((run / name).read_text())
        place = data
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = value
        (run / name).write_text(json.dumps(data))

    return act


def change_text(name: str, old: str, new: str) -> Callable[[Path], None]:
    def act(run: Path) -> None:
        text = (run / name).read_text()
        assert text.count(old) == 1, (old, text.count(old))
        (run / name).write_text(text.replace(old, new))

    return act


def flip_weight(run: Path) -> None:
    weights = bytearray((run / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (run / "model.safetensors").write_bytes(weights)


def add_picture(run: Path) -> None:
    shutil.copy(run / "assets" / "alignment_matrices.png", run / "assets" / "nicer.png")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (flip_weight, "weights"),
        (
            change_text("README.md", "| 41.00\xa0±\xa09.50 |", "| 35.00\xa0±\xa09.50 |"),
            "Matched cosine, unlearn (×100), This model",
        ),
        (change_text("README.md", "| 41.00 (7.00) |", "| 41.00 (1.00) |"), "Alignment Calibration, Cosine, unlearn"),
        (change_text("README.md", "unlearn 6, validation", "unlearn 9, validation"), "What was unlearned, Rows, Value"),
        (change_text("README.md", "**Average gap to Retrain: 5.75**", "**Average gap to Retrain: 0.75**"), "card text"),
        (change_text("README.md", "  value: 41.0\n".strip(), "value: 35.0"), "card metadata"),
        (change_text("README.md", "- machine-unlearning\n", ""), "card metadata"),
        (change_text("README.md", "(assets/alignment_matrices.png)", "(assets/none.png)"), "card pictures"),
        (change_text("README.md", "| beta | 1.0 |\n", ""), "How, beta, Value"),
        (change_json("unlearning.json", "request", "row_hashes", 2, value="0" * 64), "request"),
        (change_json("unlearning.json", "request", "sha256", value="0" * 64), "request"),
        (change_json("unlearning.json", "request", "count", value=7), "unlearning.json: counts"),
        (change_json("unlearning.json", "seed", value=4), "How, Seed, Value"),
        (change_json("unlearning.json", "base_model", "sha256", value="x"), "unlearning.json: hashes"),
        (change_json("unlearning.json", "versions", "hf-unlearn", value="9"), "unlearning.json: versions"),
        (change_json("evaluation.json", "metrics", "cosine_unlearn", value=35.0), "evaluation.json: average gap"),
        (
            change_json("evaluation.json", "per_sample", "forgetting_score", 0, value=99.0),
            "evaluation.json: forgetting score",
        ),
        (change_json("evaluation.json", "matrices", "agm", 0, 1, value=0.5), "evaluation.json: matrices"),
        (change_json("evaluation.json", "weights_sha256", value="0" * 64), "evaluation.json: weights"),
        (
            change_json("evaluation.json", "comparison", 2, "metrics", "cosine_unlearn", value=35.0),
            "evaluation.json: comparison",
        ),
        (change_json("evaluation.json", "metrics", value="none"), "evaluation.json"),
        (change_json("config.json", "projection_dim", value=32), "config.json"),
        (add_picture, "assets/nicer.png"),
        (lambda run: (run / "tokenizer.json").unlink(), "tokenizer.json"),
        (lambda run: (run / "README.md").unlink(), "card"),
    ],
)
def test_what_was_changed_is_named(run: Path, change: Callable[[Path], None], named: str) -> None:
    change(run)
    assert any(subject.removeprefix("card: ").endswith(named) for subject in subjects(verify_repo(run)))


ROW = "| Seed | 3 |\n"
SPOILED = {
    "an extra row with one cell": (ROW, f"{ROW}| Certified by an independent laboratory |\n"),
    "a table of a header alone": ("## Limits\n", "| Certified |\n| --- |\n\n## Limits\n"),
    "a row without a name": (ROW, f"{ROW}|  | 99.9% removed |\n"),
    "a false row before the true one": (ROW, f"| Seed | 4 |\n{ROW}"),
    "an extra column": (ROW, "| Seed | 3 | certified |\n"),
    "a column called otherwise": ("| Metric | Before |", "| Metric | Retrain, before |"),
    "another dataset of the figures": (
        "    dataset:\n      name: org/pictures\n",
        "    dataset:\n      name: org/web\n",
    ),
    "a figure said to be verified": ("      value: 41.0\n", "      value: 41.0\n      verified: true\n"),
}


@pytest.mark.parametrize("version", [None, "0.2.0"])
@pytest.mark.parametrize("spoil", SPOILED.values(), ids=SPOILED)
def test_nothing_can_be_added_to_tables_and_metadata(
    run: Path, monkeypatch: pytest.MonkeyPatch, spoil: tuple[str, str], version: str | None
) -> None:
    if version:
        monkeypatch.setattr(card_check, "__version__", version)
    assert verify_repo(run).ok
    change_text("README.md", *spoil)(run)
    assert [subject for subject in subjects(verify_repo(run)) if subject.startswith("card")]


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (lambda text: text.replace("\n", "\r\n"), "card"),
        (lambda text: text + "\n", "card"),
        (
            lambda text: text.replace("license: cc-by-sa-4.0\n", "license: cc-by-sa-4.0\nlicense: cc-by-sa-4.0\n"),
            "card",
        ),
        (lambda text: text.replace("model-index:", "model-index: 7 #"), "card metadata"),
        (lambda text: text.replace("---\n", "", 1), "card metadata"),
    ],
)
def test_a_card_is_what_its_records_give_to_the_byte(run: Path, spoil: Callable[[str], str], named: str) -> None:
    text = (run / "README.md").read_text(encoding="utf-8")
    assert spoil(text) != text
    (run / "README.md").write_bytes(spoil(text).encode())
    assert named in subjects(verify_repo(run))


FIGURES_OF_OTHERS = {
    "a gap of this model's row": ("comparison", 2, "gap", "cosine_unlearn", 1.0),
    "its average": ("comparison", 2, "avg_gap", 0.5),
    "a gap of another row": ("comparison", 0, "gap", "cosine_retain", 9.0),
    "a gap that is none": ("comparison", 2, "gap", "cosine_test", 0.0),
    "Retrain's row": ("comparison", 1, "metrics", "cosine_retain", 86.0),
    "Retrain's column": ("retrain", "cosine_unlearn", 41.0),
    "the row of before": ("comparison", 0, "metrics", "cosine_unlearn", 95.0),
    "the column of before": ("before", "cosine_unlearn", 95.0),
    "minutes": ("comparison", 2, "metrics", "run_time_minutes", 0.01),
    "no Retrain behind the average": ("retrain", None),
    "no average beside Retrain": ("avg_gap", None),
    "the gap over the best metric": ("gap_keys", ["cosine_retain"]),
    "a matrix that is not there": ("matrices", "am_before", []),
    "a matrix of another size": ("matrices", "am_after", [[0.5]]),
    "a gap without its two sides": ("matrices", "am_after", 0, 1, None),
    "labels of other rows": ("matrices", "labels", ["1", "2"]),
}


@pytest.mark.parametrize("place", FIGURES_OF_OTHERS.values(), ids=FIGURES_OF_OTHERS)
def test_figures_must_follow_from_each_other_although_the_card_was_written_anew(run: Path, place: tuple) -> None:
    change_json("evaluation.json", *place[:-1], value=place[-1])(run)
    write_card(run)
    failed = subjects(verify_repo(run))
    assert failed and all(subject.startswith("evaluation.json: ") for subject in failed)


def test_retrains_own_row_may_leave_its_gap_out(run: Path) -> None:
    change_json("evaluation.json", "comparison", 1, "gap", value={})(run)
    change_json("evaluation.json", "comparison", 1, "avg_gap", value=None)(run)
    write_card(run)
    assert verify_repo(run).ok


def test_a_diagonal_that_is_not_the_forgetting_scores_is_said(run: Path) -> None:
    """It is, where every image has one caption; how many there are the records do not tell."""
    subject = "evaluation.json: diagonal of AGM"
    assert next(line.outcome for line in verify_repo(run).statements if line.subject == subject) is Outcome.HOLDS
    for matrix, value in (("agm", 0.5), ("am_after", 0.25)):
        change_json("evaluation.json", "matrices", matrix, 0, 0, value=value)(run)
    write_card(run)
    report = verify_repo(run)
    assert report.ok
    assert next(line.outcome for line in report.statements if line.subject == subject) is Outcome.UNCHECKED


@pytest.mark.parametrize(
    ("family", "measured", "keys"),
    [
        ("image-text", ["cosine_retain"], GAP_KEYS["image-text"]),
        ("views", ["emia", "cmia"], GAP_KEYS["views"]),
        ("views", ["emia", "forgetting_score"], ("emia",)),
        ("audio", ["emia"], ()),
    ],
)
def test_what_the_gap_is_over_is_the_familys(family: str, measured: list[str], keys: tuple[str, ...]) -> None:
    assert gap_keys(family, measured) == keys


def test_the_gap_is_over_what_runs_measure() -> None:
    assert {e.family: e.gap_keys for e in (ImageTextEvaluator, ImageViewEvaluator)} == GAP_KEYS


@pytest.mark.parametrize("name", ["README.md", "evaluation.json", "unlearning.json"])
def test_a_file_that_is_no_text_is_named(run: Path, name: str) -> None:
    (run / name).write_bytes(b"\xff\xfe" + (run / name).read_bytes())
    if name == "unlearning.json":
        with pytest.raises(UserError, match=r"unlearning\.json is no UTF-8 text"):
            verify_repo(run)
    else:
        problems = [line.detail for line in verify_repo(run).failures]
        assert any(f"{name} is no UTF-8 text" in problem for problem in problems)


def test_an_owner_learns_whether_their_sample_is_in_the_request(
    run: Path, pictures: list[Path], tmp_path: Path
) -> None:
    mine = OwnedSample(pictures[0], (CAPTIONS[0],))
    assert verify_repo(run, salt=SALT, samples=[mine]).ok
    other = OwnedSample(pictures[0], (CAPTIONS[1],))
    assert subjects(verify_repo(run, salt=SALT, samples=[other])) == [f"your {pictures[0].name}"]
    assert subjects(verify_repo(run, salt="a guess", samples=[mine])) == [f"your {pictures[0].name}"]
    with pytest.raises(UserError, match="--salt"):
        verify_repo(run, samples=[mine])


def test_a_request_of_equal_rows_is_published_and_verified(
    run: Path, base: Path, requested: Dataset, pictures: list[Path], hub: LocalHub
) -> None:
    """Two rows of one picture and its captions, with an id each, have one hash."""
    rows = requested.select([0, *range(len(requested) - 1)])
    describe(run, base, rows)
    publish_run(run, "org/clip")
    report = verify_repo("org/clip", base=base, salt=SALT, samples=[OwnedSample(pictures[0], (CAPTIONS[0],))])
    assert report.ok, report.failures
    told = [str(line) for line in report.statements if line.subject == "request"]
    assert "6 row hashes, 5 of them different, combine" in told[0]
    named = rows.remove_columns("id").add_column("id", list("abcdef"))
    record = describe_request(RemovalRequest("file", tuple("abcdef")), named, SALT)
    assert (record.count, record.sha256) == (6, UnlearningManifest.load(run).request.sha256)


def test_without_row_hashes_the_request_cannot_be_checked(run: Path, pictures: list[Path]) -> None:
    manifest = UnlearningManifest.load(run)
    replace(manifest, request=replace(manifest.request, row_hashes=None)).save(run)
    write_card(run)
    report = verify_repo(run, salt=SALT, samples=[OwnedSample(pictures[0], (CAPTIONS[0],))])
    assert report.ok
    unchecked = [line.subject for line in report.statements if line.outcome is Outcome.UNCHECKED]
    assert {"request", f"your {pictures[0].name}"} <= set(unchecked)


def test_the_ids_of_an_unsalted_request_are_checked(run: Path, tmp_path: Path) -> None:
    ids = tmp_path / "ids.txt"
    ids.write_text("0017\n0004\n0023\n")
    digest = hashlib.sha256(b"0004\n0017\n0023\n").hexdigest()
    replace(UnlearningManifest.load(run), request=RequestRecord("file", 3, digest)).save(run)
    write_card(run)
    report = verify_repo(run, request=ids)
    assert report.ok
    assert Statement("request, ids.txt", Outcome.HOLDS, "these are its ids") in report.statements
    ids.write_text("0017\n0004\n0024\n")
    assert subjects(verify_repo(run, request=ids)) == ["request, ids.txt"]


def test_row_hashes_without_a_salt_are_a_leak(run: Path) -> None:
    manifest = UnlearningManifest.load(run)
    replace(manifest, request=replace(manifest.request, salted=False)).save(run)
    assert "request" in subjects(verify_repo(run))


def test_another_base_is_found(run: Path) -> None:
    assert subjects(verify_repo(run, base=run)) == ["base weights", "tensors"]


def test_a_broken_history_is_found(run: Path) -> None:
    manifest = UnlearningManifest.load(run)
    earlier = replace(
        manifest.as_history_entry(),
        weights_sha256=manifest.base_model.sha256,
        base_sha256="e" * 64,
        created="2020-01-01T00:00:00",
    )
    replace(manifest, history=(earlier,)).save(run)
    write_card(run)
    assert verify_repo(run).ok
    replace(manifest, history=(replace(earlier, weights_sha256="0" * 64),)).save(run)
    write_card(run)
    assert subjects(verify_repo(run)) == ["history"]
    replace(manifest, history=(replace(earlier, created="2999-01-01T00:00:00"),)).save(run)
    write_card(run)
    assert subjects(verify_repo(run)) == ["history"]


def test_a_card_of_another_version_is_compared_figure_by_figure(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    template = Path(card_module.TEMPLATE).read_text().replace("## Load it", "## How to load it")
    newer = run.parent / "newer.md.j2"
    newer.write_text(template)
    monkeypatch.setattr(card_module, "TEMPLATE", newer)
    assert subjects(verify_repo(run)) == ["card text"]
    monkeypatch.setattr(card_check, "__version__", "0.2.0")
    report = verify_repo(run)
    assert report.ok
    assert any(line.subject == "card text" and line.outcome is Outcome.UNCHECKED for line in report.statements)
    change_text("README.md", "| 41.00\xa0±\xa09.50 |", "| 35.00\xa0±\xa09.50 |")(run)
    assert len(verify_repo(run).failures) == 1


def test_measurements_under_the_name_of_earlier_versions_are_told(run: Path, hub: LocalHub) -> None:
    publish_run(run, "org/clip")
    repo = hub.repos["org/clip"]
    files = dict(repo.commits[repo.refs["main"]])
    measured = files.pop("evaluation.json")
    repo.commit("main", {**files, "audit.json": measured}, "as earlier versions published")
    with pytest.raises(UserError, match=r"holds an audit.json but no evaluation.json"):
        verify_repo("org/clip")
    (run / "evaluation.json").rename(run / "audit.json")
    for act in (verify_repo, write_card, lambda folder: publish_run(folder, "org/clip")):
        with pytest.raises(UserError, match=r"holds an audit.json but no evaluation.json"):
            act(run)


def test_an_unlearned_model_without_an_evaluation_verifies(run: Path) -> None:
    (run / "evaluation.json").unlink()
    write_card(run)
    assert verify_repo(run).ok


def test_the_record_of_the_evaluation_is_tied_to_its_figures(run: Path) -> None:
    evaluation = EvaluationRecord.load(run)
    replace(evaluation, metrics={**evaluation.metrics, "forgetting_score": None}).save(run)
    write_card(run)
    assert verify_repo(run).ok  # a metric that was not finite is missing, not wrong
