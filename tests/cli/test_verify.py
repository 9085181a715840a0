"""`verify` with data: the request that the options name is compared before any figure is."""

import pytest

from hf_unlearn.records.schemas import UnlearningManifest
from hf_unlearn.runs.command_line import parse_run
from hf_unlearn.runs.unlearn import unlearn_and_compare

SALT = "a secret of the owners"


def write_ids(path, rows):
    path.write_text("".join(f"{row}\n" for row in rows["id"]))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_clip, shapes):
    """Data that brings its held-out splits, two files of ids, and a run of one of them, with a salt and without."""
    from datasets import DatasetDict

    folder = tmp_path_factory.mktemp("verify")
    parts = {"train": range(52), "validation": range(52, 62), "test": range(62, 72)}
    DatasetDict({name: shapes.select(rows) for name, rows in parts.items()}).save_to_disk(folder / "data")
    write_ids(folder / "asked.csv", {"id": ["id", *shapes["id"][3:9]]})
    write_ids(folder / "wrong.csv", {"id": ["id", *shapes["id"][20:26]]})
    for out, salt in (("plain", ()), ("salted", ("--request_salt", SALT))):
        given = ["--model_name_or_path", tiny_clip, "--output_dir", folder / out, "--methods", "fine_tune", *salt]
        given += ["--dataset_name", folder / "data", "--unlearn_request", folder / "asked.csv", "--use_cpu", "true"]
        given += ["--max_steps", "1", "--learning_rate", "1e-2", "--warmup_steps", "0"]
        unlearn_and_compare(parse_run([str(word) for word in given]), build=None)
    return folder


@pytest.fixture
def verify(cli, folder, tiny_clip):
    """A function that measures a run again with a file of ids."""

    def call(out, file, *argv, data="data"):
        given = ["--base", tiny_clip, "--dataset", folder / data, "--unlearn_request", folder / file, *argv]
        status, said, _ = cli("verify", *map(str, (folder / out / "fine_tune", *given, "--use_cpu", "true")))
        return status, said

    return call


@pytest.mark.parametrize("argv", [(), ("--salt", SALT)])
def test_the_recorded_request_holds_and_so_do_its_figures(verify, argv):
    status, said = verify("salted" if argv else "plain", "asked.csv", *argv)
    assert status == 0 and "recomputed and holds    request, asked.csv: this is the recorded one\n" in said
    assert "figures measured again, none further off" in said and "cannot be checked here  request:" not in said


@pytest.mark.parametrize("argv", [(), ("--salt", SALT)])
def test_another_request_is_named_and_no_figure_is_accused(verify, folder, argv):
    out = "salted" if argv else "plain"
    status, said = verify(out, "wrong.csv", *argv)
    recorded = UnlearningManifest.load(folder / out / "fine_tune").request
    assert status == 1 and "does not hold: 1" in said
    told = next(line for line in said.splitlines() if line.startswith("does not hold"))
    assert "request, wrong.csv: is not the recorded request: 6 samples with SHA-256 " in told
    assert f"recorded 6 with {recorded.sha256}" in told and told.endswith("; or the salt is another") == bool(argv)
    assert "figures cannot be checked with another request than the recorded one" in said


def test_without_the_salt_a_request_cannot_be_compared(verify):
    status, said = verify("salted", "asked.csv")
    assert status == 0
    told = "request, asked.csv: the hash is of the salted rows, not of ids; give --salt\n"
    assert f"cannot be checked here  {told}" in said and "figures measured again, none further off" in said


@pytest.mark.parametrize("file", ["asked.csv", "wrong.csv"])
def test_in_other_data_the_ids_of_a_file_are_compared_all_the_same(verify, folder, shapes, file):
    from datasets import DatasetDict

    parts = {"train": range(50), "validation": range(52, 62), "test": range(62, 72)}
    DatasetDict({name: shapes.select(rows) for name, rows in parts.items()}).save_to_disk(folder / "fewer")
    status, said = verify("plain", file, data="fewer")
    assert (status, f"request, {file}: this is" in said) == ((0, True) if file == "asked.csv" else (1, False))
    told = "other rows than the recorded ones" if file == "asked.csv" else "another request than the recorded one"
    assert f"figures cannot be checked with {told}" in said
