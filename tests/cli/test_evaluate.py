"""`hf-unlearn evaluate` of a model that has been through several requests."""

import pytest

from hf_unlearn.runs.command_line import parse_run
from hf_unlearn.runs.unlearn import unlearn_and_compare


@pytest.fixture
def chain(tmp_path, tiny_clip, shapes, monkeypatch):
    """The models after one and after two requests."""
    monkeypatch.setenv("HF_UNLEARN_CACHE", str(tmp_path / "cache"))
    shapes.save_to_disk(tmp_path / "data")
    models = [tiny_clip]
    for where in ("owner=alice", "label=square"):
        given = ["--model_name_or_path", models[-1], "--output_dir", tmp_path / where, "--methods", "fine_tune"]
        given += ["--dataset_name", tmp_path / "data", "--unlearn_where", where, "--use_cpu", "true"]
        given += ["--max_steps", "1", "--learning_rate", "1e-3", "--warmup_steps", "0", "--duplicates", "keep"]
        unlearn_and_compare(parse_run([str(word) for word in given]), build=None)
        models.append(tmp_path / where / "fine_tune")
    return models[1:]


def test_what_is_measured_of_earlier_requests_is_told(cli, chain, tmp_path):
    first, second = chain
    given = ["--base", first, "--dataset", tmp_path / "data", "--unlearn_where", "label=square", "--duplicates", "keep"]
    code, output, _ = cli("evaluate", *map(str, (second, *given, "--use_cpu", "true")))
    (line,) = [line for line in output.splitlines() if line.startswith("Request 1: 8 of 8 ")]
    assert code == 0
    assert "rows are measured, at a mean alignment of" in line and "which its own run left at" in line
    assert "held-out rows are at" in line
