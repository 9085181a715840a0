"""Embeddings in files: those that others computed, and recordings of an encoder's answers for a later audit."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from tokenize import TokenError  # how numpy reads a header

import numpy as np

from hf_unlearn.audit.embeddings import Array, Embeddings
from hf_unlearn.audit.pictures import Picture
from hf_unlearn.errors import UserError
from hf_unlearn.parsing import Fields, read_tensors
from hf_unlearn.records.codec import decode, from_json

SUFFIXES = (".npy", ".safetensors", ".parquet")
RECORD = "hf_unlearn"  # key of a recorded file's metadata
PARTS = ("images", "texts", "text_owner", "held_back", "repeats", "nudged")


def is_precomputed(name: str) -> bool:
    """Whether an encoder's name, as the user gave it, is a file of embeddings: `.npy`, `.safetensors` or `.parquet`."""
    return name.lower().endswith(SUFFIXES) and "://" not in name


def read_embeddings(path: str | Path, pictures: Sequence[Picture], captions: Sequence[Sequence[str]]) -> Embeddings:
    """Read one encoder's embeddings from a file.

    - `.npy`: `[n, k, d]` or `[n, d]`, rows in the order of the pictures' names, requested arm first, then still
      trained, then never trained. Two "views" may be an image and its caption.
    - `.safetensors`: tensors `images [n, k, d]` or `[n, d]`, and optionally `texts [m, d]` (one a caption, in the order
      of the pictures) and `held_back [n, k, d]`; files written by `save_embeddings` know their pictures by hash and may
      hold more of them, in any order.
    - `.parquet`: columns `image` (name) and `embedding` (list of numbers), in any order, one row a view; an optional
      column `kind` says `image`, `text` or `held_back`.

    Args:
        path: The file.
        pictures: The audited pictures, in order.
        captions: Each picture's captions; empty lists when there are none.

    Returns:
        The embeddings, in the order of the pictures.

    Raises:
        UserError: When the file is missing, unreadable, or does not fit the pictures.
    """
    file = Path(path)
    if not file.is_file():
        raise UserError(f"The embeddings file '{path}' does not exist; give a .npy, .safetensors or .parquet file.")
    readers = {".npy": _read_npy, ".safetensors": _read_safetensors, ".parquet": _read_parquet}
    parts, source = readers[file.suffix.lower()](file, pictures)
    for name in ("images", "held_back", "nudged"):
        if name in parts:
            parts[name] = _three_axes(parts[name], name, file, len(pictures))
    owner = np.array([i for i, group in enumerate(captions) for _ in group], dtype=np.int64)
    texts, stored = parts.get("texts"), parts.get("text_owner")
    if len(owner) == 0:  # no captions file: the file itself says, or there is one caption a picture
        owner = np.arange(len(pictures)) if stored is None else stored.astype(np.int64)
    if texts is not None and (
        texts.ndim != 2
        or len(texts) != len(owner)
        or len(set(owner.tolist())) != len(pictures)
        or (stored is not None and not np.array_equal(stored, owner))
    ):
        raise UserError(
            f"'{file.name}' holds caption embeddings of shape {list(texts.shape)}, which do not match the {len(owner)} "
            f"captions of the {len(pictures)} pictures; store one row a caption, in the order of the pictures."
        )
    shapes = {name: list(array.shape) for name, array in parts.items() if name != "text_owner"}
    for name, shape in shapes.items():
        axes = 2 if name in ("texts", "repeats") else 3
        if len(shape) != axes or shape[-1] != shapes["images"][-1]:
            raise UserError(
                f"'{file.name}' holds {name} of shape {shape} beside images of shape {shapes['images']}; "
                f"it needs {'[n, d]' if axes == 2 else '[n, k, d]'} with the same d: embeddings of one encoder."
            )
    return Embeddings(
        images=parts["images"],
        texts=texts,
        text_owner=None if texts is None else owner,
        held_back=parts.get("held_back"),
        repeats=parts.get("repeats"),
        nudged=parts.get("nudged"),
        original_first=bool(source.get("drawn", {}).get("original_first", False)),
        source={**source, "kind": "precomputed", "file": file.name, "dimension": int(parts["images"].shape[-1])},
    )


def captions_sha256(captions: Sequence[Sequence[str]]) -> str:
    """Hash the captions of several pictures, in order, so that a recording can tell whether they are still the same."""
    return _combined([_captions_hash(texts) for texts in captions])


def _captions_hash(texts: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps(list(texts)).encode()).hexdigest()


def _combined(hashes: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()


def save_embeddings(
    embeddings: Embeddings,
    pictures: Sequence[Picture],
    path: str | Path,
    drawn: Mapping[str, object],
    captions: Sequence[Sequence[str]] | None = None,
) -> Path:
    """Write embeddings for a later audit, together with the hashes of the pictures and of their captions.

    Args:
        embeddings: One encoder's answers.
        pictures: The pictures, in the same order.
        path: A `.safetensors` file.
        drawn: How the views were drawn.
        captions: Each picture's captions; None where they are not known.

    Returns:
        The path written.
    """
    from safetensors.numpy import save_file

    tensors = {name: np.ascontiguousarray(array) for name in PARTS if (array := getattr(embeddings, name)) is not None}
    recorded = {
        "pictures": [picture.sha256 for picture in pictures],
        "source": dict(embeddings.source),
        "drawn": dict(drawn),
    }
    if captions is not None:
        recorded["captions"] = [_captions_hash(texts) for texts in captions]
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(".partial")
    save_file(tensors, partial, {RECORD: json.dumps(recorded)})
    partial.rename(target)
    return target


Parts = tuple[dict[str, Array], Fields]


def _read_npy(file: Path, pictures: Sequence[Picture]) -> Parts:
    try:  # mapped, so that no header makes numpy take more memory than the file has bytes
        return {"images": np.array(np.load(file, mmap_mode="r", allow_pickle=False))}, {}
    except (ValueError, OSError, EOFError, TypeError, LookupError, OverflowError, SyntaxError, TokenError) as error:
        raise UserError(f"'{file.name}' is no array that numpy.save wrote ({error}); write it again.") from error


def _read_safetensors(file: Path, pictures: Sequence[Picture]) -> Parts:
    from safetensors import safe_open

    tensors = read_tensors(file, "write it again")  # through torch, which knows bfloat16
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata() or {}
    recorded = None if RECORD not in metadata else _record(metadata[RECORD], file)
    parts = {name: tensor.double().numpy() for name, tensor in tensors.items()}
    allowed = {"images", "texts", "held_back"} | ({"text_owner", "repeats", "nudged"} if recorded else set())
    if "images" not in parts or set(parts) - allowed:
        raise UserError(
            f"'{file.name}' holds the tensors {sorted(parts)}; it needs 'images' and may hold 'texts' and 'held_back'."
        )
    if recorded is None:
        return parts, {}
    count, owners = len(recorded.pictures), len(parts.get("texts", ()))
    fits = all(parts[name].shape[:1] == (count,) for name in PARTS if name in parts and not name.startswith("text"))
    if owners:
        owner = parts.get("text_owner", np.zeros(0))
        fits = fits and owner.shape == (owners,) and bool(np.isin(owner, range(count)).all())
    if not fits:
        raise UserError(f"'{file.name}' does not hold what it records of {count} pictures; write it again.")
    place = {sha256: i for i, sha256 in enumerate(recorded.pictures)}
    if missing := [picture.name for picture in pictures if picture.sha256 not in place]:
        raise UserError(f"'{file.name}' has no record of {', '.join(missing[:5])}; audit the recorded pictures.")
    rows = [place[picture.sha256] for picture in pictures]
    source = {**recorded.source, "drawn": recorded.drawn}
    if recorded.captions is not None:
        source["captions_sha256"] = _combined([recorded.captions[row] for row in rows])
    ordered = Embeddings(**parts).take(rows)  # type: ignore[arg-type]
    return {name: array for name in PARTS if (array := getattr(ordered, name)) is not None}, source


@dataclass(frozen=True)
class _Record:
    """What a recording says of itself; every hash is that of a picture, or of its captions, in their order."""

    pictures: tuple[str, ...]
    source: dict[str, object]
    drawn: dict[str, object]
    captions: tuple[str, ...] | None = None


@dataclass(frozen=True)
class _Drawn:
    """What a later audit takes from how the views were drawn."""

    seed: int | None = None
    count: int | None = None
    original_first: bool = False
    views: object = None  # where they are none of ours, a word; else a table whose family and size become settings


def _record(text: str, file: Path) -> _Record:
    """The record in a file, whose author may be anybody.

    Raises:
        UserError: It is none.
    """
    where, known = f"the record in '{file.name}'", {item.name for item in fields(_Drawn)}
    record = from_json(_Record, text, where)
    decode(_Drawn, {name: value for name, value in record.drawn.items() if name in known}, f"{where}.drawn")
    if record.captions is not None and len(record.captions) != len(record.pictures):
        raise UserError(f"{where} has captions of {len(record.captions)} of {len(record.pictures)} pictures.")
    return record


def _read_parquet(file: Path, pictures: Sequence[Picture]) -> Parts:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(file)
        there = [name for name in ("image", "embedding", "kind") if name in table.column_names]
        rows = {name: table.column(name).to_pylist() for name in there}
    except (pa.ArrowException, OSError, ValueError, LookupError, OverflowError) as error:
        raise UserError(f"'{file.name}' is no parquet file ({error}); write it again.") from error
    if missing := {"image", "embedding"} - set(there):
        raise UserError(f"'{file.name}' lacks the column {sorted(missing)}; it needs 'image' and 'embedding'.")
    names = [picture.name for picture in pictures]
    kinds = rows.get("kind", ["image"] * table.num_rows)
    if not all(isinstance(word, str) for word in (*rows["image"], *kinds)):
        raise UserError(f"'{file.name}' has rows whose image or kind is no text; name both in every row.")
    keys = {"image": "images", "text": "texts", "held_back": "held_back"}
    if unknown := set(kinds) - set(keys):
        raise UserError(f"'{file.name}' has the kinds {sorted(unknown)}; use image, text or held_back.")
    if stray := sorted(set(rows["image"]) - set(names)):
        raise UserError(f"'{file.name}' has rows for images that are not audited: {', '.join(stray[:5])}.")
    parts: dict[str, Array] = {}
    for kind in dict.fromkeys(kinds):
        groups: dict[str, list[list[float]]] = {name: [] for name in names}
        for name, embedding, row_kind in zip(rows["image"], rows["embedding"], kinds, strict=True):
            if row_kind == kind:
                groups[name].append(embedding)
        try:
            if kind == "text":
                parts["texts"] = np.array([row for name in names for row in groups[name]], dtype=np.float64)
                owners = [i for i, name in enumerate(names) for _ in groups[name]]
                parts["text_owner"] = np.array(owners, dtype=np.float64)
            else:
                parts[keys[kind]] = np.array(list(groups.values()), dtype=np.float64)
        except (ValueError, TypeError) as error:
            raise UserError(
                f"'{file.name}' does not hold equally many {kind} rows of one length for every image; complete it."
            ) from error
    if "images" not in parts:
        raise UserError(f"'{file.name}' has no row of kind image; add the image embeddings.")
    return parts, {}


def _three_axes(array: Array, name: str, file: Path, n: int) -> Array:
    """`[n, d]` becomes `[n, 1, d]`; anything that does not fit the pictures is refused."""
    if array.ndim == 2:
        array = array[:, None]
    if array.ndim != 3 or 0 in array.shape or not np.issubdtype(array.dtype, np.floating):
        raise UserError(
            f"'{file.name}' holds {name} of shape {list(array.shape)} and type {array.dtype}; "
            "it needs floating-point [n, k, d] or [n, d]."
        )
    if len(array) != n:
        raise UserError(f"'{file.name}' holds {name} for {len(array)} pictures but {n} are audited; they must agree.")
    return array.astype(np.float64) if array.itemsize > 8 else array  # no file of ours holds longer ones
