"""The hash of a run's settings: it tells what is unlearned from what, not where that is written down."""

import torch
from safetensors.torch import save_file

from hf_unlearn.runs.command_line import parse_run
from hf_unlearn.runs.resuming import RunState, settings_hash, training_key


def key(*argv: object) -> str:
    return settings_hash(parse_run([str(word) for word in argv]))


def test_a_request_is_its_ids(tmp_path):
    for name, text in {"a.txt": "x\ny\n", "b.csv": "id\ny\nx\n", "c.txt": "x\nz\n"}.items():
        (tmp_path / name).write_text(text)
    first = key("--unlearn_request", tmp_path / "a.txt")
    assert first == key("--unlearn_request", tmp_path / "b.csv") != key("--unlearn_request", tmp_path / "c.txt")
    (tmp_path / "a.txt").write_text("x\n")
    assert key("--unlearn_request", tmp_path / "a.txt") not in (first, key())


def test_local_data_is_its_files(shapes, tmp_path):
    data = tmp_path / "data"
    shapes.select(range(9)).save_to_disk(data)
    first = key("--dataset_name", data)
    (data / "cache-0123.arrow").write_bytes(b"computed by datasets")
    assert key("--dataset_name", data) == first
    (data / "more.arrow").write_bytes(b"another row")
    assert key("--dataset_name", data) != first
    shapes.select(range(9)).to_parquet(tmp_path / "rows.parquet")
    one_file = key("--dataset_name", tmp_path / "rows.parquet")
    shapes.select(range(10)).to_parquet(tmp_path / "rows.parquet")
    assert key("--dataset_name", tmp_path / "rows.parquet") != one_file


def test_workers_decide_which_rows_of_a_stream_meet_and_nothing_of_resident_ones(tiny_clip, tmp_path):
    (tmp_path / "ids.txt").write_text("x\n")
    stream = ("--dataset_name", "somebody/shards", "--streaming", "--unlearn_request", tmp_path / "ids.txt")
    argv = ("--model_name_or_path", tiny_clip, "--methods", "fine_tune")

    def training(*words: object) -> dict:
        return training_key(parse_run([str(word) for word in (*argv, *words)]))

    assert training(*stream, "--dataloader_num_workers", 1) != training(*stream, "--dataloader_num_workers", 2)
    assert training("--dataloader_num_workers", 1) == training("--dataloader_num_workers", 2)


def test_a_run_killed_before_it_let_go_of_checkpoints_does_so_when_it_is_resumed(tmp_path):
    state = RunState(tmp_path)
    state.begin()
    (tmp_path / "fine_tune").mkdir()
    save_file({"weight": torch.zeros(2)}, tmp_path / "fine_tune" / "model.safetensors")
    state.finish("fine_tune")
    for method in ("fine_tune", "npo"):
        (state.checkpoints(method) / "checkpoint-1").mkdir(parents=True)
    RunState(tmp_path, resume=True).begin()
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["npo"]
    assert (tmp_path / "fine_tune" / "model.safetensors").is_file()
