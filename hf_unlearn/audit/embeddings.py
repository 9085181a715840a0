"""What an audit measures: embeddings of views and captions, their alignments, and their faults in plain words."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hf_unlearn.errors import UserError
from hf_unlearn.metrics.alignment_matrices import COLLAPSED, Matrix, unit_rows
from hf_unlearn.parsing import Fields

Array = NDArray[np.floating]


def directions(x: ArrayLike) -> Matrix:
    """Unit embeddings as `unit_rows` gives them, whatever their magnitude: no square overflows or vanishes.

    Each is first divided by a power of two near its largest number, which rounds nothing.
    """
    array = np.asarray(x, dtype=np.float64)
    largest = np.abs(array).max(-1, keepdims=True, initial=0.0)
    exponent = np.frexp(np.where(np.isfinite(largest), largest, 1.0))[1]
    return unit_rows(np.ldexp(array, -exponent))


@dataclass(frozen=True, eq=False)
class Embeddings:
    """One encoder's answers on the audited pictures, in the order of the pictures.

    Args:
        images: `[n, k, d]`, k views of each of n pictures; not normalised.
        texts: `[m, d]` captions, not normalised; None for an audit of views alone.
        text_owner: `[m]`, the picture that each caption describes.
        held_back: `[n, k', d]` views of the held-back family, if measured.
        repeats: `[n, d]`, the first view asked a second time, if measured.
        nudged: `[n, s, d]`, the picture as it is after small changes of s growing sizes, the first imperceptible, if
            measured.
        original_first: Whether the first view is the picture as it is. With captions it weighs as much as all others.
        source: What the report says about the encoder.
    """

    images: Array
    texts: Array | None = None
    text_owner: NDArray[np.int64] | None = None
    held_back: Array | None = None
    repeats: Array | None = None
    nudged: Array | None = None
    original_first: bool = False
    source: Fields = field(default_factory=dict)

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
        if captions is not None:
            return np.clip((self._weighted(unit, held_back) * captions).sum(-1), -1.0, 1.0)
        total = unit.sum(1)
        return np.clip(((total**2).sum(-1) - (unit**2).sum((1, 2))) / _pairs(unit), -1.0, 1.0)

    def alignment_matrix(self, rows: Sequence[int] | None = None) -> Matrix:
        """`AM[i, j]`: mean cosine over the pairs of a view of i and another view, or a caption, of j.

        With two views it is, up to symmetry, the matrix of section 4.2; with more it averages over all pairs of
        distinct views. Its diagonal holds `alignments`.

        Args:
            rows: Which pictures, in which order; all by default.

        Returns:
            `[r, r]` in [-1, 1].

        Raises:
            UserError: When there is one view and no caption: nothing to align it with.
        """
        unit, captions = self._units(rows, held_back=False)
        if captions is not None:
            return np.clip(self._weighted(unit, held_back=False) @ captions.T, -1.0, 1.0)
        total = unit.sum(1)
        same_view = np.einsum("ikd,jkd->ij", unit, unit)
        return np.clip((total @ total.T - same_view) / _pairs(unit), -1.0, 1.0)

    def _units(self, rows: Sequence[int] | None, held_back: bool) -> tuple[Matrix, Matrix | None]:
        """Unit embeddings `[r, k, d]` of views and, with captions, each picture's mean unit caption `[r, d]`."""
        views = self.held_back if held_back else self.images
        if views is None:
            raise UserError("These embeddings hold no held-back views; measure them, or leave the held-back tests out.")
        chosen = np.arange(len(views)) if rows is None else np.asarray(rows)
        captions = self.mean_captions()
        if captions is None:
            return directions(views[chosen]), None
        return directions(views[chosen]), captions[chosen]

    def mean_captions(self) -> Matrix | None:
        """Each picture's mean unit caption `[n, d]`, NaN where it has none; None without captions."""
        if self.texts is None or self.text_owner is None:
            return None
        sums = np.zeros((len(self.images), self.texts.shape[1]))
        np.add.at(sums, self.text_owner, directions(self.texts))
        with np.errstate(invalid="ignore"):  # decoys have none
            return sums / np.bincount(self.text_owner, minlength=len(sums))[:, None]

    def _weighted(self, unit: Matrix, held_back: bool) -> Matrix:
        """Mean over the views `[r, d]`: the picture as it is, which remembers most, weighs as much as all its crops."""
        if held_back or not self.original_first or unit.shape[1] < 2:
            return unit.mean(1)
        return (unit[:, 0] + unit[:, 1:].mean(1)) / 2

    def take(self, rows: Sequence[int]) -> "Embeddings":
        """The answers about some pictures, in the given order."""
        chosen = np.asarray(rows, dtype=np.int64)
        parts: dict[str, Any] = {
            name: None if (array := getattr(self, name)) is None else array[chosen]
            for name in ("images", "held_back", "repeats", "nudged")
        }
        texts = owners = None
        if self.texts is not None and self.text_owner is not None:
            picked = [np.flatnonzero(self.text_owner == row) for row in chosen]
            texts = self.texts[np.concatenate(picked)]
            owners = np.repeat(np.arange(len(chosen), dtype=np.int64), [len(some) for some in picked])
        return replace(self, **parts, texts=texts, text_owner=owners)

    def half(self, generator: np.random.Generator) -> "Embeddings | None":
        """As it would be with other views: a random half of each kind, the picture as it is kept; None with too few.

        Half of the views deviate from all of them as much as all of them do from the encoder's true mean.
        """
        first = 1 if self.original_first else 0
        count = self.images.shape[1] - first
        if count < 4 or (self.held_back is not None and self.held_back.shape[1] < 4):
            return None
        picked = np.sort(generator.permutation(count)[: count // 2]) + first
        kept = self.images[:, [0, *picked] if first else picked]
        held = self.held_back
        if held is not None:
            held = held[:, generator.permutation(held.shape[1])[: held.shape[1] // 2]]
        return replace(self, images=kept, held_back=held)

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
        """Whether the encoder, called by this name ("The model before"), can no longer tell pictures apart.

        Returns:
            A sentence if the mean cosine between views of different pictures is 1 to six digits; else None.
        """
        unit = directions(self.images)
        centre = unit[np.isfinite(unit).all((1, 2))].mean(1)
        n = len(centre)
        if n < 2:
            return None
        between = (np.sum(centre.sum(0) ** 2) - np.sum(centre**2)) / (n * (n - 1))
        return f"{name} has collapsed: it gives every picture the same embedding." if between > COLLAPSED else None


def _pairs(unit: Matrix) -> int:
    """Ordered pairs of distinct views of one picture, k (k - 1)."""
    count = unit.shape[1]
    if count < 2:
        raise UserError(
            "One embedding a picture has nothing to align with; give two or more views [n, k, d], or captions."
        )
    return count * (count - 1)


def _listed(names: Sequence[str], chosen: NDArray[np.bool_], most: int = 5) -> str:
    """`3 of 8 pictures (a.png, b.png, c.png)`."""
    picked = [name for name, wanted in zip(names, chosen, strict=True) if wanted]
    more = ", …" if len(picked) > most else ""
    return f"{len(picked)} of {len(names)} pictures ({', '.join(picked[:most])}{more})"
