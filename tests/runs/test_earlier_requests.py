"""One request after another: what was unlearned stays out of the data, is measured each time, and is never taught."""

import json
import re
from collections import Counter

import pytest
from datasets import DatasetDict

from hf_unlearn.data.fingerprint import row_hashes
from hf_unlearn.data.splits import make_splits
from hf_unlearn.errors import UserError
from hf_unlearn.hub.drift import drift_notes
from hf_unlearn.hub.past_requests import PastRequests, past_rows
from hf_unlearn.hub.recorded_rows import PRIVATE_ROWS_NAME
from hf_unlearn.methods import METHODS
from hf_unlearn.models.loading import load_encoder
from hf_unlearn.records.schemas import RequestStatus
from hf_unlearn.runs.builders import BUILDERS
from hf_unlearn.runs.command_line import parse_run
from hf_unlearn.runs.run_data import prepare_task
from hf_unlearn.runs.unlearn import unlearn_and_compare

WEEKS = {1: range(0, 6), 2: range(20, 24)}


@pytest.fixture
def options(shapes, tiny_clip, tmp_path, monkeypatch):
    """Options of a week's run: all 72 pictures stay in the data, whatever was asked for before."""
    monkeypatch.setenv("HF_UNLEARN_CACHE", str(tmp_path / "cache"))
    shapes.save_to_disk(tmp_path / "data")
    for week, rows in WEEKS.items():
        (tmp_path / f"week{week}.txt").write_text("".join(f"{row}\n" for row in shapes.select(rows)["id"]))

    def build(week, base, *argv):
        given = {
            "dataset_name": tmp_path / "data",
            "model_name_or_path": base,
            "unlearn_request": tmp_path / f"week{week}.txt",
            "output_dir": tmp_path / f"out{week}",
            "methods": "fine_tune",
            "num_train_epochs": 1,
            "per_device_train_batch_size": 16,
            "use_cpu": "true",
            "disable_tqdm": "true",
        }
        return [*(str(word) for name, value in given.items() for word in (f"--{name}", value)), *argv]

    return build


def ids_of(splits, name):
    return set(splits[name]["id"])


def test_a_second_run_keeps_the_first_request_out_and_measures_it(options, shapes, tiny_clip, tmp_path):
    first = parse_run(options(1, tiny_clip))
    before = prepare_task(first.arguments)
    unlearn_and_compare(first, BUILDERS["clip"])
    last = tmp_path / "out1" / "fine_tune"
    second = parse_run(options(2, last, "--methods", "fine_tune", "alignment_calibration"))
    task = prepare_task(second.arguments)
    asked_first = set(shapes.select(WEEKS[1])["id"])
    assert ids_of(task.splits, "earlier") == asked_first
    for name in ("retain", "unlearn", "validation", "test"):
        assert not ids_of(task.splits, name) & asked_first, name
    asked_second = set(shapes.select(WEEKS[2])["id"])
    for name in ("validation", "test"):  # held out by the first run, held out by the second
        assert ids_of(task.splits, name) == ids_of(before.splits, name) - asked_second
    assert any("are drawn from those" in note for note in before.notes)
    assert not any("are drawn from those" in note for note in task.notes)
    never = len(asked_second & (ids_of(before.splits, "validation") | ids_of(before.splits, "test")))
    assert never and any(
        f"{never} of the 4 rows to be unlearned were held out by the first" in note for note in task.notes
    )
    assert not any("were held out by the first" in note for note in before.notes)

    unlearn_and_compare(second, BUILDERS["clip"])
    for method in second.methods:
        folder = tmp_path / "out2" / method
        evaluation = json.loads((folder / "evaluation.json").read_text())
        earlier, own = evaluation["requests"]
        assert (earlier["number"], earlier["count"], earlier["measured"]) == (1, 6, 6)
        assert (own["number"], own["count"], own["then"]) == (2, 4, own["now"])
        first_evaluation = json.loads((last / "evaluation.json").read_text())
        assert earlier["then"] == first_evaluation["requests"][0]["now"] and earlier["now"] is not None
        assert evaluation["original"] == first_evaluation["before"]
        card = (folder / "README.md").read_text()
        assert "\n\nThe original model's Cosine, unlearn and gaps are of the first request's samples.\n\n" in card
        assert "All requests on this model" in card and "| Metric | Original | Before | This model |" in card
        original = first_evaluation["requests"][0]["unseen"]  # held-out rows under the model before any request
        assert earlier["estimated_gap"] == pytest.approx(abs(earlier["now"] - original))
        assert evaluation["metrics"]["estimated_gap_unlearn"] == pytest.approx(
            abs(evaluation["metrics"]["cosine_unlearn"] - first_evaluation["before"]["cosine_validation"])
        )
        assert "| original model |" in (tmp_path / "out2" / "results.md").read_text()
        assert f"{earlier['now']:.1f} ({earlier['low']:.1f} to {earlier['high']:.1f})" in card
        private = json.loads((folder / PRIVATE_ROWS_NAME).read_text())
        assert [len(rows) for rows in private["requests"].values()] == [6, 4]
        manifest = json.loads((folder / "unlearning.json").read_text())
        assert len(manifest["history"]) == 1 and manifest["retain_sha256"] == task.retain_sha256
    # A third run knows both.
    (tmp_path / "week3.txt").write_text(shapes["id"][40] + "\n")
    third = parse_run(options(3, tmp_path / "out2" / "fine_tune"))
    again = prepare_task(third.arguments)
    assert sorted(again.splits["earlier"]["request"]) == [1] * 6 + [2] * 4


def test_with_a_salt_the_second_run_needs_it_or_the_file(options, tiny_clip, tmp_path):
    unlearn_and_compare(parse_run(options(1, tiny_clip, "--request_salt", "secret")), BUILDERS["clip"])
    last = tmp_path / "out1" / "fine_tune"
    assert not (last / PRIVATE_ROWS_NAME).exists()
    with pytest.raises(UserError, match="--earlier_requests"):
        prepare_task(parse_run(options(2, last)).arguments)
    for told in (("--request_salt", "secret"), ("--earlier_requests", str(tmp_path / "week1.txt"))):
        assert len(prepare_task(parse_run(options(2, last, *told)).arguments).splits["earlier"]) == 6


def test_rows_that_are_gone_are_said_to_be_unmeasured(options, shapes, tiny_clip, tmp_path):
    unlearn_and_compare(parse_run(options(1, tiny_clip)), BUILDERS["clip"])
    shapes.select(range(6, 72)).save_to_disk(tmp_path / "without")
    last = tmp_path / "out1" / "fine_tune"
    task = prepare_task(parse_run(options(2, last, "--dataset_name", str(tmp_path / "without"))).arguments)
    assert len(task.splits["earlier"]) == 0
    gone = "Of the 6 rows of request 1, 6 are not in the data any more or not as recorded: whether the model has "
    assert gone + "drifted back to them is not measured." in task.notes


def test_why_rows_are_not_measured_is_counted(options, shapes, tiny_clip, tmp_path):
    unlearn_and_compare(parse_run(options(1, tiny_clip)), BUILDERS["clip"])
    shapes.select(range(1, 72)).save_to_disk(tmp_path / "without")  # the first row was dropped
    data, told = ("--dataset_name", str(tmp_path / "without")), "Of the 6 rows of request 1, 1 is not in the data any "
    told += "more or not as recorded and 2 are asked for again: whether the model has drifted back to them is "
    (tmp_path / "week2.txt").write_text("".join(f"{row}\n" for row in shapes.select([2, 3, 30])["id"]))
    second = options(2, tmp_path / "out1" / "fine_tune", *data)
    assert told + "measured on the other 3." in notes_of(second)
    unlearn_and_compare(parse_run(second), BUILDERS["clip"])
    # From then on they are the second's.
    (tmp_path / "week3.txt").write_text(f"{shapes['id'][50]}\n")
    third = options(3, tmp_path / "out2" / "fine_tune", *data)
    assert [note for note in notes_of(third) if " rows of request " in note] == [told + "measured on the other 3."]
    drawn = [*third, "--unlearn_fraction", "0.1", "--num_samples", "20"]
    drawn = [word for word in drawn if word != "--unlearn_request" and not word.endswith("week3.txt")]
    first, *_ = (note for note in notes_of(drawn) if " rows of request " in note)
    assert re.search(r"and 2 are asked for again and [123] (is|are) left out of this run: whether", first)


def notes_of(argv):
    return prepare_task(parse_run(argv).arguments).notes


def test_the_rows_that_are_left_are_compared_with_what_they_were_left_at(options, shapes, tiny_clip, tmp_path):
    """Two runs later, and with rows asked for again; the level of each row is in no file that is published."""
    still, base = ("--learning_rate", "1e-12"), tiny_clip
    for week, asked in ((1, WEEKS[1]), (2, WEEKS[2]), (3, [0, 1, 40])):  # the third has two rows of the first again
        (tmp_path / f"week{week}.txt").write_text("".join(f"{row}\n" for row in shapes.select(asked)["id"]))
        unlearn_and_compare(parse_run(options(week, base, *still)), BUILDERS["clip"])
        base = tmp_path / f"out{week}" / "fine_tune"
    left = json.loads((tmp_path / "out1" / "fine_tune" / PRIVATE_ROWS_NAME).read_text())["levels"]
    kept = 100 * sum(left[sha256] for sha256 in row_hashes(shapes.select(range(2, 6)))) / 4
    evaluation = json.loads((base / "evaluation.json").read_text())
    first, *_ = evaluation["requests"]
    assert (first["count"], first["measured"], first["then_rows"]) == (6, 4, 6)
    assert first["then"] == pytest.approx(kept) and abs(first["then"] - first["then_all"]) > 0.1
    assert first["now"] == pytest.approx(kept, abs=1e-3) and not first["drifted"]
    private = json.loads((base / PRIVATE_ROWS_NAME).read_text())
    assert len(private["levels"]) == 6 + 4 + 1  # the newest of a row that was asked for twice
    public = (base / "evaluation.json").read_text() + (base / "unlearning.json").read_text()
    assert not any(sha256 in public for sha256 in left)


def test_retrain_is_compared_by_its_rows(options, shapes, tiny_clip, tmp_path):
    from hf_unlearn.runs.experiment import Experiment

    # The rows that the first run holds out are the data's own held-out splits from then on.
    splits = prepare_task(parse_run(options(1, tiny_clip)).arguments).splits
    held_out = ids_of(splits, "validation") | ids_of(splits, "test")
    train = shapes.filter(lambda row: row["id"] not in held_out)
    DatasetDict(train=train, validation=splits["validation"], test=splits["test"]).save_to_disk(tmp_path / "parted")
    told = ("--dataset_name", str(tmp_path / "parted"))
    (tmp_path / "week2.txt").write_text("".join(f"{row}\n" for row in train["id"][20:24]))
    unlearn_and_compare(parse_run(options(1, tiny_clip, *told, "--methods", "retrain", "fine_tune")), BUILDERS["clip"])
    last, retrain = (str(tmp_path / "out1" / name) for name in ("fine_tune", "retrain"))
    second = parse_run(options(2, last, *told, "--retrain_model", retrain))
    with pytest.raises(UserError, match="other rows than this run retains"):
        Experiment(second, prepare_task(second.arguments), last)
    # One that was trained without both requests, whatever it was asked for, is a Retrain of the second run.
    (tmp_path / "week12.txt").write_text((tmp_path / "week1.txt").read_text() + (tmp_path / "week2.txt").read_text())
    unlearn_and_compare(parse_run(options(12, tiny_clip, *told, "--methods", "retrain")), BUILDERS["clip"])
    second = parse_run(options(2, last, *told, "--retrain_model", str(tmp_path / "out12" / "retrain")))
    Experiment(second, prepare_task(second.arguments), last)


def test_a_trainer_refuses_rows_that_its_model_unlearned(options, shapes, tiny_clip, tmp_path):
    unlearn_and_compare(parse_run(options(1, tiny_clip)), BUILDERS["clip"])
    last = tmp_path / "out1" / "fine_tune"
    model, processor = load_encoder(str(last))
    trainer_class = METHODS["alignment_calibration"]
    config = trainer_class.config_class(output_dir=str(tmp_path / "t"), use_cpu=True, report_to="none")
    asked = list(shapes.select(WEEKS[2])["id"])
    careless, _ = make_splits(shapes, unlearn_request=asked)
    with pytest.raises(UserError, match=r"were unlearned from this model before.*make_splits\(data, \.\.\., past="):
        trainer_class(model, config, careless, processing_class=processor)
    careful, _ = make_splits(shapes, unlearn_request=asked, past=past_rows(last, shapes))
    trainer = trainer_class(model, config, careful, processing_class=processor)
    retain, unlearn = trainer.train_dataset.splits
    assert (len(retain), len(unlearn)) == (len(careful["retain"]), 4)
    trainer.begin_holding()
    assert len(trainer.held.targets) == 6  # every earlier row is held, though fewer are asked for now
    # What it saves tells the next run of both requests.
    trainer.save_model(str(tmp_path / "saved"))
    found = past_rows(tmp_path / "saved", shapes)
    assert Counter(found.requested["train"].values()) == {1: 6, 2: 4}
    assert found.held_out["validation"] == past_rows(last, shapes).held_out["validation"]
    first, own = PastRequests.read(tmp_path / "saved").statuses()
    recorded = json.loads((last / "evaluation.json").read_text())["requests"][0]
    assert first.then == recorded["now"] and first.measured == 6 and own.count == own.measured == 4
    # The weights did not change, so both requests are where the model had them.
    assert first.now == pytest.approx(recorded["now"], abs=1e-3) and own.then == own.before == own.now
    assert first.unseen == recorded["unseen"] and own.unseen == own.non_member


def test_what_came_back_is_said():
    came_back = RequestStatus(1, "neg_grad", "2026-01-01", 40, 40, 80.0, 24.8, 79.9, 70.0, 88.0, 34.0, drifted=True)
    (note,) = drift_notes((came_back, RequestStatus(2, "neg_grad", None, 40, 40, 80.0, 30.0, 30.0, 25.0, 35.0, 34.0)))
    assert "drifted back to request 1" in note and "79.9" in note and "24.8" in note and "34.0" in note
