"""What the app takes of a visitor: which models, and how many pictures of what size."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from audit.conftest import folder_of

from hf_unlearn.audit.app_limits import Limits, copy_uploads, one_file, usable_model, whole_number
from hf_unlearn.errors import UserError


@pytest.mark.parametrize("name", ["http://169.254.169.254/embed", "x.npy", "/etc", "."])
def test_a_public_space_reaches_neither_files_nor_network(name):
    with pytest.raises(UserError, match="must be a Hub id"):
        usable_model(name, "before", True, Limits.public())
    assert usable_model(" org/clip ", "before", True, Limits(model_bytes=None)) == "org/clip"


@pytest.mark.parametrize("value", [None, 1, 5, 2.5, float("nan"), float("inf")])
def test_a_number_that_is_none_is_refused(value):
    """A field that was emptied has none, nor has what is sent past the page."""
    assert whole_number(3.0, 2, 4, "Views a picture") == 3
    with pytest.raises(UserError, match="Views a picture must be a whole number from 2 to 4, not"):
        whole_number(value, 2, 4, "Views a picture")


@pytest.mark.parametrize("name", [None, "", " "])
def test_a_model_without_a_name_is_refused(name):
    with pytest.raises(UserError, match="The model after has no name"):
        usable_model(name, "after", False, Limits())


def test_a_model_is_weighed_before_it_is_fetched(monkeypatch):
    files = [SimpleNamespace(rfilename=name, size=2**30) for name in ("model.safetensors", "b.safetensors", "w.bin")]
    asked = []

    def model_info(*_, **how):
        asked.append(how)
        return SimpleNamespace(siblings=files, sha="0" * 40)

    monkeypatch.setattr("huggingface_hub.model_info", model_info)
    # Pickles are never fetched; what was weighed is what will be fetched.
    assert usable_model("org/clip@main", "before", True, Limits.public()) == f"org/clip@{'0' * 40}"
    with pytest.raises(UserError, match="has 2048 MB, and 1024 MB are allowed"):
        usable_model("org/clip@main", "before", True, Limits(model_bytes=2**30))
    assert all(how["token"] is False and how["files_metadata"] for how in asked)
    files.append(SimpleNamespace(rfilename="c.safetensors", size=None))
    with pytest.raises(UserError, match="has inf MB"):
        usable_model("org/clip", "before", True, Limits.public())
    files[-1:] = [SimpleNamespace(rfilename="config.json", size=10**9)]
    with pytest.raises(UserError, match=r"over 64 MB of config\.json"):
        usable_model("org/clip", "before", True, Limits.public())
    assert usable_model("/any/folder", "after", False, Limits()) == "/any/folder"


def test_uploads_are_limited_and_two_of_one_name_are_two(tmp_path):
    for name in "ab":
        folder_of(tmp_path / name, 1)
    files = [str(tmp_path / name / "picture-00.png") for name in "ab"]
    copied = copy_uploads(files, tmp_path / "arm", Limits(), "pictures")
    assert len(list(copied.iterdir())) == 2
    between = tmp_path / "2-picture-00.png"
    between.write_bytes(Path(files[0]).read_bytes())
    copied = copy_uploads([files[0], str(between), *files], tmp_path / "many", Limits(), "pictures")
    assert len(list(copied.iterdir())) == 4
    (hidden := tmp_path / ".hidden.png").write_bytes(between.read_bytes())  # it would be passed over, unsaid
    with pytest.raises(UserError, match=r"\.hidden\.png is no picture by its name"):
        copy_uploads([str(hidden)], tmp_path / "odd", Limits(), "pictures")
    (long := tmp_path / f"{'a' * 250}.png").write_bytes(between.read_bytes())
    with pytest.raises(UserError, match="has a name of more than 240 bytes"):
        copy_uploads([str(long), str(long)], tmp_path / "odd", Limits(), "pictures")
    with pytest.raises(UserError, match=r"'picture-00\.png' has .* MB, and 0 MB are allowed"):
        one_file(files[0], Limits(file_bytes=10))
    for limits, words in (
        (Limits(pictures=1), "2 pictures were uploaded, and 1 are allowed"),
        (Limits(upload_bytes=10), "are allowed; upload fewer"),
        (Limits(picture_pixels=100), "pixels, and 100 are allowed"),
    ):
        with pytest.raises(UserError, match=words):
            copy_uploads(files, tmp_path / words[:3], limits, "pictures")
    with pytest.raises(UserError, match="Nothing to audit yet"):
        copy_uploads([], tmp_path / "none", Limits(), "pictures")


def test_an_allowed_model_is_allowed_as_it_is():
    """A pull request, which anybody may open, is a revision of the repository."""
    limits = Limits(models=frozenset({"org/clip", "org/old@v1"}), model_bytes=None)
    for name in ("org/clip", "org/old@v1"):
        assert usable_model(name, "before", True, limits) == name
    for name in ("org/clip@refs/pr/1", "org/old", "org/other"):
        with pytest.raises(UserError, match="not among those"):
            usable_model(name, "before", True, limits)
