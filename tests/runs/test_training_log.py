"""What a run shows and keeps of a training: one bar, every loss in the log file and at the trackers."""

import json

from trainers import encoder, make_trainer, splits  # noqa: F401  (fixtures)

from hf_unlearn.runs.training_log import LOG_NAME, attach_log


def test_losses_go_to_the_log_file_and_no_dictionary_to_the_terminal(make_trainer, tmp_path, capsys):  # noqa: F811
    trainer = make_trainer("alignment_calibration", num_train_epochs=2)
    attach_log(trainer, "alignment_calibration", tmp_path / "run")
    trainer.train()
    captured = capsys.readouterr()
    assert "loss" not in captured.out + captured.err
    rows = [json.loads(line) for line in (tmp_path / "run" / LOG_NAME).read_text().splitlines()]
    losses = [row for row in rows if "loss" in row]
    assert [row["epoch"] for row in losses] == [1, 2] and all(row["training"] == trainer.args.method for row in rows)
    # What is written is what the Trainer logged, every term of the loss with it.
    logged = [row for row in trainer.state.log_history if "loss" in row]
    assert [{**row, "training": 0} for row in losses] == [{**row, "training": 0} for row in logged]
    assert {"loss_retain", "negative"} <= set(losses[0]), losses[0]


def test_a_bar_moves_with_the_steps_and_leaves_nothing(make_trainer, tmp_path, capsys):  # noqa: F811
    trainer = make_trainer("fine_tune", max_steps=3)
    trainer.args.disable_tqdm = False
    attach_log(trainer, "fine_tune", None)
    trainer.train()
    shown = capsys.readouterr().err
    assert "fine_tune" in shown and "3/3" in shown and "'loss'" not in shown
    assert not list(tmp_path.rglob(LOG_NAME))


def test_trackers_get_the_losses_where_they_stay(make_trainer, tmp_path):  # noqa: F811
    """TensorBoard's own default lies among the checkpoints, which go when the method is finished."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trainer = make_trainer("fine_tune", report_to="tensorboard", num_train_epochs=2)
    attach_log(trainer, "fine_tune", tmp_path / "run")
    trainer.train()
    events = EventAccumulator(str(tmp_path / "run" / "logs" / "fine_tune")).Reload()
    logged = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    found = [event.value for event in events.Scalars("train/loss")]
    assert len(found) == 2 and max(abs(a - b) for a, b in zip(found, logged, strict=True)) < 1e-5
