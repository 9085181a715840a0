"""Whatever stands on a command line, in a config, a request or a run's record: a result or one sentence, never else."""

import json
import re
import string
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from hf_unlearn.cli.guard import guarded
from hf_unlearn.data.requests import parse_where, read_request
from hf_unlearn.errors import UserError
from hf_unlearn.methods import METHODS
from hf_unlearn.runs.command_line import Run, parse_run
from hf_unlearn.runs.resuming import RUN_NAME, RunState
from hf_unlearn.runs.run_arguments import RunArguments
from hf_unlearn.training.checkpoints import CHECKSUMS_NAME, damage

pytestmark = pytest.mark.slow
QUICK = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
NAMES = sorted(
    {f"--{name}" for method in METHODS.values() for name in method.config_class.__dataclass_fields__}
    | {f"--{name}" for name in RunArguments.__dataclass_fields__}
    | {"--config", "--model.width", "--pretrain.seed", "--neg_grad.preset", "--", "---", "--a.b.c"}
)
NAMES = [name for name in NAMES if name not in ("--deepspeed", "--fsdp", "--fsdp_config")]  # these start machinery
SMALL = st.one_of(
    st.text(max_size=8),
    st.sampled_from(
        ["0", "-1", "1", "2", "nan", "inf", "1e9", "true", "false", "no", "epoch", "steps", "{}", "[]", "{a", "None"]
    ),
    st.floats().map(str),
    st.integers(-5, 5).map(str),
)
TREES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=10)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(string.printable, max_size=10), inner, max_size=3)
    ),
    max_leaves=8,
)


def parsed_or_told(argv: list[str]) -> Run | None:
    """The parsed run, or None where one sentence told why not."""
    try:
        run = parse_run(argv)
    except UserError as error:
        assert str(error) and "Traceback" not in str(error)
        return None
    assert isinstance(run, Run) and run.methods
    return run


@QUICK
@given(st.lists(st.one_of(st.sampled_from(NAMES), SMALL), max_size=6))
@example(["--bf16", "true", "--fp16", "true"])
@example(["--lr_scheduler_type", "sideways"])
@example(["--optim", "faith"])
@example(["--warmup_steps", "-3"])
@example(["--config", "/"])
@example(["--methods"])
@example(["--methods", "retrain", "retrain"])
@example(["--save_strategy", "steps", "--save_steps", "0"])
@example(["--load_best_model_at_end", "true"])
@example(["--lr_scheduler_kwargs", "{"])
@example(["--learning_rate"])
@example(["--output_dir", "\0"])
@example(["--accelerator_config", ""])
@example(["--model.width", "\x1f"])
@example(["--model.width", "[" * 5000])
def test_any_command_line(argv: list[str]) -> None:
    first, again = parsed_or_told(argv), parsed_or_told(argv)
    assert (first is None) == (again is None)  # parsing leaves nothing behind that a second one trips over


@QUICK
@given(st.one_of(st.binary(max_size=60), TREES.map(lambda tree: yaml.safe_dump(tree).encode())))
@example(b"methods: retrain")
@example(b"methods: 3")
@example(b"? [a]\n: b")
@example(b"learning_rate: {a: 1}")
@example(b"retrain: {learning_rate: [1, 2]}")
@example(b"1: 2")
@example(b"\xff\xfe")
@example(b"model: {1: 2}")
@example(b"config: other.yaml")
@example(b"learning_rate: !!python/object/apply:os.mkdir [evil]")
def test_any_config(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(content)
    parsed_or_told(["--config", str(path)])
    assert not Path("evil").exists()


@QUICK
@given(
    st.sampled_from([".txt", ".csv", ".json", ".yaml"]),
    st.one_of(st.binary(max_size=60), TREES.map(lambda t: json.dumps(t).encode())),
)
@example(".json", b"[" * 100_000)
@example(".json", b"[1e999, NaN]")
@example(".json", b"[" + b"9" * 5000 + b"]")
@example(".csv", b'id\n"')
@example(".csv", b"id\n" + b"x" * 200_000)
@example(".csv", b"id\n\0")
def test_any_request(tmp_path_factory: pytest.TempPathFactory, suffix: str, content: bytes) -> None:
    path = (tmp_path_factory.getbasetemp() / "any").with_suffix(suffix)
    path.write_bytes(content)
    try:
        ids = read_request(path)
    except UserError as error:
        assert "any" in str(error)
        return
    assert ids and all(isinstance(row_id, str) and row_id.strip() for row_id in ids) and len(set(ids)) == len(ids)


@QUICK
@given(st.text(max_size=20))
def test_any_condition(condition: str) -> None:
    try:
        column, values = parse_where(condition)
    except UserError:
        return
    assert column and values and all(values)


@QUICK
@given(st.one_of(st.binary(max_size=60), TREES.map(lambda tree: json.dumps(tree).encode())))
@example(b'{"files": {"": "0"}, "seconds": 1}')
@example(b'{"files": {"a\\u0000b": "0"}}')
@example(b'{"files": [1]}')
@example(b'{"files": {"x": 1}, "seconds": "soon"}')
def test_any_checksums_are_judged(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    folder = tmp_path_factory.getbasetemp() / "any-checkpoint"
    folder.mkdir(exist_ok=True)
    (folder / CHECKSUMS_NAME).write_bytes(content)
    assert damage(folder) is not None


@QUICK
@given(st.one_of(st.binary(max_size=60), TREES.map(lambda tree: json.dumps(tree).encode())))
@example(b'{"key": [], "finished": {}}')
@example(b'{"key": {}, "finished": 1}')
@example(b'{"key": {}, "finished": {"../../etc": "0"}}')
def test_any_record_of_a_run(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    folder = tmp_path_factory.getbasetemp() / "any-run"
    folder.mkdir(exist_ok=True)
    (folder / RUN_NAME).write_bytes(content)
    try:
        state = RunState(folder, resume=True)
        state.require({"seed": 0})
    except UserError as error:
        assert RUN_NAME in str(error) or "is another one" in str(error)
        return
    assert not any(state.has_finished(method) for method in METHODS)


def test_the_guard_is_what_programs_run_under() -> None:
    recipes = Path(__file__).parents[2] / "recipes"
    for path in recipes.glob("*.py"):
        program = path.read_text().partition('if __name__ == "__main__":\n')[2].strip()
        assert re.fullmatch(r"guarded\((main|lambda: \w+\(sys\.argv\[1:\], family=\"\w+\"\))\)", program), path
    assert guarded.__module__ == "hf_unlearn.cli.guard"
