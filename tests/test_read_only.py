from pathlib import Path

import pytest

from hf_unlearn.errors import UserError
from hf_unlearn.files import refuse_to_write_to


@pytest.fixture
def model(tmp_path, monkeypatch) -> Path:
    """A folder of a model, from beside it."""
    (tmp_path / "models" / "clip").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "models" / "clip")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "models" / "clip"


@pytest.mark.parametrize(
    "output", ["models/clip/out", "models/clip/out.safetensors", "models/x/../clip/out", "link/out"]
)
def test_nothing_is_written_into_what_is_read(model, output):
    with pytest.raises(UserError, match=r"^--to \S+ lies in --base \S+/models/clip, which is only read; .* --to$"):
        refuse_to_write_to(model, "--base", output, "--to")


@pytest.mark.parametrize("output", ["models", ".", "models/clip", "link"])
def test_nor_around_it(model, output):
    with pytest.raises(
        UserError, match=r"^--base \S+/models/clip lies in --output_dir \S+, which is written to; choose"
    ):
        refuse_to_write_to(model, "--base", output)


@pytest.mark.parametrize("source", [None, "org/name", "models/clip/embeddings.npy"])
def test_what_is_no_folder_is_in_nobodys_way(model, source):
    (model / "embeddings.npy").touch()
    refuse_to_write_to(source, "--base", ".")
    refuse_to_write_to(model, "--base", "models/clip-unlearned")  # a name that only begins alike
