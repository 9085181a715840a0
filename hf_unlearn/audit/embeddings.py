"""What an audit measures: embeddings of views and captions, their alignments, and their faults in plain words."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hf_unlearn.audit.images import Picture
from hf_unlearn.errors import UserError
from hf_unlearn.metrics.alignment_matrices import COLLAPSED, Matrix, unit_rows

Array = NDArray[np.floating[Any]]

SUFFIXES = (".npy", ".safetensors", ".parquet")
RECORD = "hf_unlearn"  # key of a recorded file's metadata


@dataclass(frozen=True, eq=False)
class Embeddings:
    """One encoder's answers on the audited pictures, in the order of the pictures.

    Args:
        images: `[n, k, d]`, k views of each of n pictures; not normalised.
        texts: `[m, d]` captions, not normalised; None for an audit of views alone.
        text_owner: `[m]`, the picture that each caption describes.
        held_back: `[n, k', d]` views of the held-back family, if measured.
        repeats: `[n, d]`, the first view asked a second time, if measured.
        source: What the report says about the encoder.
    """

    images: Array
    texts: Array | None = None
    text_owner: NDArray[np.int64] | None = None
    held_back: Array | None = None
    repeats: Array | None = None
    source: Mapping[str, Any] = field(default_factory=dict)

    def alignments(self, *, held_back: bool = False) -> Matrix:
        """Mean cosine of each picture's positive pairs: its views with each other, or with its captions.

        `a_i = mean over k < l of cos(v_ik, v_il)`, or `mean over k and the captions t of i of cos(v_ik, t)`

        Args:
            held_back: Whether to take the held-back views.

        Returns:
            `[n]`; NaN where an embedding is zero or not finite.

        Raises:
            UserError: When there is one view and no caption: nothing to align it with.
        """
        unit, captions = self._units(None, held_back)
        total = unit.sum(1)
        if captions is not None:
            return np.clip((total * captions).sum(-1) / unit.shape[1], -1.0, 1.0)
        return np.clip(((total**2).sum(-1) - (unit**2).sum((1, 2))) / _pairs(unit), -1.0, 1.0)

    def alignment_matrix(self, rows: Sequence[int] | None = None, *, held_back: bool = False) -> Matrix:
        """`AM[i, j]`: mean cosine over the pairs of a view of i and another view, or a caption, of j.

        With two views it is, up to symmetry, the matrix of section 4.2; with more it averages over all pairs of
        distinct views. Its diagonal holds `alignments`.

        Args:
            rows: Which pictures, in which order; all by default.
            held_back: Whether to take the held-back views.

        Returns:
            `[r, r]` in [-1, 1].

        Raises:
            UserError: When there is one view and no caption: nothing to align it with.
        """
        unit, captions = self._units(rows, held_back)
        total = unit.sum(1)
        if captions is not None:
            return np.clip(total @ captions.T / unit.shape[1], -1.0, 1.0)
        same_view = np.einsum("ikd,jkd->ij", unit, unit)
        return np.clip((total @ total.T - same_view) / _pairs(unit), -1.0, 1.0)

    def _units(self, rows: Sequence[int] | None, held_back: bool) -> tuple[Matrix, Matrix | None]:
        """Unit embeddings `[r, k, d]` of views and, with captions, each picture's mean unit caption `[r, d]`."""
        views = self.held_back if held_back else self.images
        if views is None:
            raise UserError("These embeddings hold no held-back views; measure them, or leave the held-back tests out.")
        chosen = np.arange(len(views)) if rows is None else np.asarray(rows)
        if self.texts is None or self.text_owner is None:
            return unit_rows(views[chosen]), None
        captions = unit_rows(self.texts)
        return unit_rows(views[chosen]), np.stack([captions[self.text_owner == i].mean(0) for i in chosen])

    def faults(self, name: str, pictures: Sequence[str]) -> list[str]:
        """Zero and non-finite embeddings, a sentence each.

        Args:
            name: What to call the encoder ("The model before").
            pictures: The pictures' names.

        Returns:
            Sentences that name the pictures; empty when all is well.
        """
        parts = [part for part in (self.images, self.held_back) if part is not None]
        vectors = np.concatenate(parts, axis=1)
        broken = {
            "embeddings that are not finite for": ~np.isfinite(vectors).all(-1).all(-1),
            "zero embeddings for": (vectors == 0).all(-1).any(-1),
        }
        if self.texts is not None and self.text_owner is not None:
            bad = ~np.isfinite(self.texts).all(-1) | (self.texts == 0).all(-1)
            broken["zero or non-finite embeddings for captions of"] = np.isin(
                np.arange(len(pictures)), self.text_owner[bad]
            )
        return [f"{name} gives {what} {_listed(pictures, where)}." for what, where in broken.items() if where.any()]

    def collapse(self, name: str) -> str | None:
        """Whether the encoder can no longer tell pictures apart.

        Args:
            name: What to call the encoder ("The model before").

        Returns:
            A sentence if the mean cosine between views of different pictures is 1 to six digits; else None.
        """
        unit = unit_rows(self.images)
        centre = unit[np.isfinite(unit).all((1, 2))].mean(1)
        n = len(centre)
        if n < 2:
            return None
        between = (np.sum(centre.sum(0) ** 2) - np.sum(centre**2)) / (n * (n - 1))
        return f"{name} has collapsed: it gives every picture the same embedding." if between > COLLAPSED else None


def change(before: Embeddings, after: Embeddings) -> Matrix:
    """Relative distance between two encoders' embeddings of each picture, averaged over its views and captions.

    `|x - y| / ((|x| + |y|) / 2)`, exactly 0 when no number differs.

    Args:
        before: One encoder's embeddings.
        after: The other's, on the same views and captions.

    Returns:
        `[n]`, at least 0; NaN where the two have different dimensions.
    """
    n = len(before.images)
    if before.images.shape != after.images.shape:
        return np.full(n, np.nan)
    sums = _distance(before.images, after.images).sum(1)
    counts = np.full(n, float(before.images.shape[1]))
    if before.texts is not None and after.texts is not None and before.text_owner is not None:
        np.add.at(sums, before.text_owner, _distance(before.texts, after.texts))
        np.add.at(counts, before.text_owner, 1.0)
    return sums / counts


def noise(embeddings: Embeddings) -> Matrix | None:
    """The distance of `change` between two identical queries to one encoder.

    Args:
        embeddings: Embeddings with or without repeats.

    Returns:
        `[n]`, or None when no query was repeated.
    """
    if embeddings.repeats is None:
        return None
    return _distance(embeddings.images[:, 0], embeddings.repeats)


def is_precomputed(name: str) -> bool:
    """Whether an encoder's name is a file of embeddings.

    Args:
        name: What the user gave for an encoder.

    Returns:
        True for `.npy`, `.safetensors` and `.parquet`.
    """
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
    for name in ("images", "held_back"):
        if name in parts:
            parts[name] = _three_axes(parts[name], name, file, len(pictures))
    owner = np.array([i for i, group in enumerate(captions) for _ in group], dtype=np.int64)
    texts, told = parts.get("texts"), parts.get("text_owner")
    if len(owner) == 0:  # no captions file: the file itself says, or there is one caption a picture
        owner = np.arange(len(pictures)) if told is None else told.astype(np.int64)
    if texts is not None and (
        texts.ndim != 2
        or len(texts) != len(owner)
        or len(set(owner.tolist())) != len(pictures)
        or (told is not None and not np.array_equal(told, owner))
    ):
        raise UserError(
            f"'{file.name}' holds caption embeddings of shape {list(texts.shape)}, which do not match the {len(owner)} "
            f"captions of the {len(pictures)} pictures; store one row a caption, in the order of the pictures."
        )
    return Embeddings(
        images=parts["images"],
        texts=texts,
        text_owner=None if texts is None else owner,
        held_back=parts.get("held_back"),
        repeats=parts.get("repeats"),
        source={**source, "kind": "precomputed", "file": file.name, "dimension": int(parts["images"].shape[-1])},
    )


def captions_sha256(captions: Sequence[Sequence[str]]) -> str:
    """Hash the captions of several pictures, in order, so that a recording can tell whether they are still the same."""
    return _combined([_captions_hash(texts) for texts in captions])


def _captions_hash(texts: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps(list(texts)).encode()).hexdigest()


def _combined(hashes: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()


def _pairs(unit: Matrix) -> int:
    """Ordered pairs of distinct views of one picture, k (k - 1)."""
    count = unit.shape[1]
    if count < 2:
        raise UserError(
            "One embedding a picture has nothing to align with; give two or more views [n, k, d], or captions."
        )
    return count * (count - 1)


def save_embeddings(
    embeddings: Embeddings,
    pictures: Sequence[Picture],
    path: str | Path,
    drawn: Mapping[str, Any],
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

    tensors = {
        name: np.ascontiguousarray(array)
        for name in ("images", "texts", "text_owner", "held_back", "repeats")
        if (array := getattr(embeddings, name)) is not None
    }
    told = {
        "pictures": [picture.sha256 for picture in pictures],
        "source": dict(embeddings.source),
        "drawn": dict(drawn),
    }
    if captions is not None:
        told["captions"] = [_captions_hash(texts) for texts in captions]
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(".partial")
    save_file(tensors, partial, {RECORD: json.dumps(told)})
    partial.rename(target)
    return target


Parts = tuple[dict[str, Array], dict[str, Any]]


def _read_npy(file: Path, pictures: Sequence[Picture]) -> Parts:
    try:
        return {"images": np.load(file, allow_pickle=False)}, {}
    except (ValueError, OSError, EOFError) as error:
        raise UserError(f"'{file.name}' is no array that numpy.save wrote ({error}); write it again.") from error


def _read_safetensors(file: Path, pictures: Sequence[Picture]) -> Parts:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "pt") as opened:  # through torch, which knows bfloat16
            told = json.loads((opened.metadata() or {}).get(RECORD, "{}"))
            parts = {name: opened.get_tensor(name).double().numpy() for name in opened.keys()}  # noqa: SIM118
    except (SafetensorError, json.JSONDecodeError) as error:
        raise UserError(f"'{file.name}' is no safetensors file ({error}); write it again.") from error
    allowed = {"images", "texts", "held_back"} | ({"text_owner", "repeats"} if told else set())
    if "images" not in parts or set(parts) - allowed:
        raise UserError(
            f"'{file.name}' holds the tensors {sorted(parts)}; it needs 'images' and may hold 'texts' and 'held_back'."
        )
    if not told:
        return parts, {}
    rows = _recorded_rows(told["pictures"], pictures, file)
    source = {**told["source"], "drawn": told["drawn"]}
    if "captions" in told:
        source["captions_sha256"] = _combined([told["captions"][row] for row in rows])
    return _reorder(parts, rows), source


def _recorded_rows(hashes: Sequence[str], pictures: Sequence[Picture], file: Path) -> list[int]:
    """Find the audited pictures, which are known by hash, among the recorded ones."""
    place = {sha256: i for i, sha256 in enumerate(hashes)}
    if missing := [picture.name for picture in pictures if picture.sha256 not in place]:
        raise UserError(f"'{file.name}' has no record of {', '.join(missing[:5])}; audit the recorded pictures.")
    return [place[picture.sha256] for picture in pictures]


def _reorder(parts: dict[str, Array], rows: Sequence[int]) -> dict[str, Array]:
    """Bring recorded rows into the order of the audited pictures."""
    ordered: dict[str, Array] = {
        name: parts[name][list(rows)] for name in ("images", "held_back", "repeats") if name in parts
    }
    if "texts" in parts:
        chosen = [np.flatnonzero(parts["text_owner"] == row) for row in rows]
        ordered["texts"] = parts["texts"][np.concatenate(chosen)]
        ordered["text_owner"] = np.repeat(np.arange(len(rows), dtype=np.float64), [len(some) for some in chosen])
    return ordered


def _read_parquet(file: Path, pictures: Sequence[Picture]) -> Parts:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(file)
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"'{file.name}' is no parquet file ({error}); write it again.") from error
    if missing := {"image", "embedding"} - set(table.column_names):
        raise UserError(f"'{file.name}' lacks the column {sorted(missing)}; it needs 'image' and 'embedding'.")
    rows = table.to_pydict()
    names = [picture.name for picture in pictures]
    kinds = rows.get("kind", ["image"] * table.num_rows)
    keys = {"image": "images", "text": "texts", "held_back": "held_back"}
    if unknown := set(kinds) - set(keys):
        raise UserError(f"'{file.name}' has the kinds {sorted(map(str, unknown))}; use image, text or held_back.")
    if stray := sorted(set(rows["image"]) - set(names)):
        raise UserError(f"'{file.name}' has rows for images that are not audited: {', '.join(map(str, stray[:5]))}.")
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
    return array


def _distance(x: Array, y: Array) -> Matrix:
    """Relative distance along the last axis; 0 for equal vectors, also for two zero vectors."""
    first, second = x.astype(np.float64), y.astype(np.float64)
    scale = (np.linalg.norm(first, axis=-1) + np.linalg.norm(second, axis=-1)) / 2
    distance = np.linalg.norm(first - second, axis=-1)
    return np.divide(distance, scale, out=np.zeros_like(distance), where=scale != 0)


def _listed(names: Sequence[str], chosen: NDArray[np.bool_], most: int = 5) -> str:
    """`3 of 8 pictures (a.png, b.png, c.png)`."""
    picked = [name for name, wanted in zip(names, chosen, strict=True) if wanted]
    more = ", …" if len(picked) > most else ""
    return f"{len(picked)} of {len(names)} pictures ({', '.join(picked[:most])}{more})"
