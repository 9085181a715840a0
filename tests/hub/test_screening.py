"""Nothing private leaves: each form is found, and the message names the place but never repeats a secret."""

import io
import pickle
from pathlib import Path

import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import save, save_file

from hf_unlearn.errors import UserError
from hf_unlearn.hub.screening import screen, user_names

SENTINEL = "sentinel-5f3a9c-do-not-publish"


def png(**texts: str) -> bytes:
    info, buffer = PngInfo(), io.BytesIO()
    for key, value in texts.items():
        info.add_text(key, value)
    Image.new("RGB", (2, 2)).save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


@pytest.fixture(autouse=True)
def ada(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USER", "ada_lovelace")
    monkeypatch.setenv("HOME", "/home/ada_lovelace")
    monkeypatch.setenv("SOME_API_KEY", SENTINEL)


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("config.json", b'{"_name_or_path": "/data/models/clip"}', "line 1 holds the absolute path /data/models/clip"),
        ("config.json", b'{\n"cache": "/scratch"}', "line 2 holds the absolute path /scratch"),
        ("README.md", b"trained in ~/runs/x", "the absolute path ~/runs"),
        ("README.md", b"see file:///srv/x.png", "the absolute path file:///srv/x.png"),
        ("config.json", rb'{"x": "C:\\Users\\x"}', r"the absolute path C:\\Users"),
        ("README.md", b"made by ada_lovelace", "the user name ada_lovelace"),
        ("tokenizer.json", b'{"x": "/home/ada_lovelace/t"}', "the path of your home folder"),
        ("README.md", SENTINEL.encode(), "a token or another secret"),
        ("tokenizer.json", SENTINEL.encode(), "a token or another secret"),
        ("README.md", b"hf_" + b"a" * 34, "a token or another secret"),
        ("modeling_x.py", b"-----BEGIN PRIVATE KEY-----", "a token or another secret"),
        ("config.json", pickle.dumps({"lr": 1}), "is not what its name says"),
        ("README.md", b"\xff\xfe", "is not what its name says"),
        ("assets/agm.png", b"GIF89a", "is not what its name says"),
        ("assets/agm.png", png(Author=SENTINEL), "the text field Author holds a token"),
        ("assets/agm.png", png(Source="/home/ada_lovelace/x.py"), "the path of your home folder"),
        ("spiece.model", pickle.dumps([1]), "is not what its name says"),
    ],
)
def test_what_is_private_is_named_and_refused(name: str, content: bytes, named: str) -> None:
    with pytest.raises(UserError) as error:
        screen({name: content, "vocab.txt": b"fine"})
    assert f"{name}: " in str(error.value)
    assert named in str(error.value)
    assert SENTINEL not in str(error.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (
            "README.md",
            b"[paper](https://arxiv.org/abs/2406.03603), either/or, $a \\,/\\, b$, `path/to/this/folder`, </a>",
        ),
        ("tokenizer.json", b'{"/usr/bin/": 3, "~/": 4, "c:\\\\x": 5}'),
        ("modeling_x.py", b"total = count / other / third  # n/a, and/or"),
        ("assets/agm.png", png(Software="Matplotlib version3.9, https://matplotlib.org/")),
    ],
)
def test_what_only_looks_like_a_path_passes(name: str, content: bytes) -> None:
    screen({name: content})


def test_the_token_in_use_is_looked_for() -> None:
    with pytest.raises(UserError, match="a token or another secret"):
        screen({"README.md": b"token: opaque-token-1234"}, token="opaque-token-1234")


def test_a_public_id_may_hold_the_user_name() -> None:
    screen({"README.md": b"load ada_lovelace/clip"}, public_names=["ada_lovelace/clip"])
    with pytest.raises(UserError, match="the user name"):
        screen({"README.md": b"load ada_lovelace/clip"})


def test_names_that_everybody_has_are_no_user_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USER", "root")
    monkeypatch.setenv("LOGNAME", "ci")
    monkeypatch.setenv("HOME", "/root")
    assert not user_names() - {"ada_lovelace"}


def test_weights_are_whole_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"w": torch.ones(3)}, path, metadata={"format": "pt"})
    screen({path.name: path})
    whole = path.read_bytes()
    for broken in (whole[:-1], whole[:20], b"", pickle.dumps({"w": 1}), whole + b"\0"):
        path.write_bytes(broken)
        with pytest.raises(UserError, match="is not what its name says"):
            screen({path.name: path})
    path.write_bytes(save({"w": torch.ones(3)}, metadata={"source": "/home/ada_lovelace/x"}))
    with pytest.raises(UserError, match="the metadata field source"):
        screen({path.name: path})


def test_links_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text("{}")
    (tmp_path / "config.json").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"config.json: is a link"):
        screen({"config.json": tmp_path / "config.json"})
