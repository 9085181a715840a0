"""What every metric asks of its input: finite, non-zero embeddings and finite, matching scores."""

import logging

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hf_unlearn.errors import DivergenceError, UserError
from hf_unlearn.metrics.alignment_matrices import COLLAPSED

Array = npt.ArrayLike | Tensor
"""A tensor on any device, a NumPy array or nested lists."""

Scores = npt.NDArray[np.float64]
"""One float64 number a sample."""

logger = logging.getLogger(__name__)


def check_embeddings(x: Array, name: str = "embeddings") -> Tensor:
    """Returns `x [n, d]` as unit vectors in float32 (float64 if given so), on its own device.

    Collapsed embeddings leave every metric defined, so they are logged as a warning and not refused.

    Raises:
        UserError: `x` is no matrix, is empty, or a sample is non-finite or zero; the message names the first sample.

    Example:
        >>> check_embeddings([[0.0, 2.0]]).tolist()
        [[0.0, 1.0]]
    """
    features = check_features(x, name)
    zero = (features == 0).all(1)
    if zero.any():
        raise UserError(
            f"{name}: sample {_first(zero)} has zero norm ({int(zero.sum())} of {len(features)} have), so its cosine "
            "is undefined; check the encoder and that sample's input"
        )
    units = normalize(features)
    if _mean_cosine(units) > COLLAPSED:
        logger.warning("%s: all %d samples point the same way; the encoder has collapsed", name, len(units))
    return units


def check_features(x: Array, name: str = "features") -> Tensor:
    """Returns `x [n, d]` as `as_features` does, for metrics that look at lengths, too.

    Raises:
        UserError: `x` is no matrix, is empty, or a sample is non-finite; the message names the first sample.
    """
    features = as_features(x, name)
    finite = features.isfinite().all(1)
    if not finite.all():
        raise DivergenceError(
            f"{name}: sample {_first(~finite)} is NaN or infinite ({int((~finite).sum())} of {len(features)} are); "
            "the encoder has diverged, so evaluate an earlier checkpoint or lower the learning rate"
        )
    return features


def as_features(x: Array, name: str = "embeddings") -> Tensor:
    """Returns `x` as a detached float matrix `[n, d]` with at least one row; half precision becomes float32."""
    features = torch.as_tensor(x).detach()
    if features.dtype != torch.float64:
        features = features.float()
    if features.ndim != 2 or features.numel() == 0:
        raise UserError(f"{name}: expected a non-empty matrix [samples, dimensions], got shape {list(features.shape)}")
    return features


def normalize(features: Tensor) -> Tensor:
    """Unit vectors along the last dimension; divides by the largest entry first, so that no square overflows."""
    scaled = features / features.abs().amax(-1, keepdim=True)
    return scaled / torch.linalg.vector_norm(scaled, dim=-1, keepdim=True)


def check_same_length(**arrays: Tensor | Scores) -> None:
    """Raises unless all arrays hold one row per same sample."""
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise UserError(f"the same samples are needed in the same order, but their numbers differ: {told}")


def check_scores(scores: Array, name: str = "scores") -> Scores:
    """Returns `scores [n]` as float64.

    Raises:
        UserError: `scores` is no vector, is empty, or a score is NaN or infinite; the message names the first sample.
    """
    values = np.asarray(scores.detach().cpu() if isinstance(scores, Tensor) else scores, dtype=np.float64)
    if values.ndim != 1 or values.size == 0:
        raise UserError(f"{name}: expected a non-empty vector with one number a sample, got shape {list(values.shape)}")
    finite = np.isfinite(values)
    if not finite.all():
        raise UserError(f"{name}: sample {int(np.argmin(finite))} is NaN or infinite; leave it out or mend the encoder")
    return values


def check_labels(labels: Array, count: int, name: str = "labels") -> Tensor:
    """Returns `labels [n]` as int64 on the CPU.

    Raises:
        UserError: there is not one non-negative whole number for each of `count` samples.
    """
    values = torch.as_tensor(labels).detach().cpu()
    if values.ndim != 1 or len(values) != count:
        raise UserError(f"{name}: expected one label for each of {count} samples, got shape {list(values.shape)}")
    if values.is_floating_point() or bool((values < 0).any()):
        raise UserError(f"{name}: expected class indices from 0, got {values.min().item()} among {values.dtype} values")
    return values.long()


def check_owner(owner: Array | None, n: int, m: int) -> Tensor:
    """Returns the image index of each of `m` captions: `owner [m]`, or 0..n-1 when there is one caption an image.

    Raises:
        UserError: an owner is missing for a caption, or is no index of an image.
    """
    if owner is None:
        if n != m:
            raise UserError(f"{n} images have {m} captions; say which image each caption belongs to with `owner`")
        return torch.arange(n)
    indices = check_labels(owner, m, "owner")
    if int(indices.max()) >= n:
        first = _first(indices >= n)
        raise UserError(f"owner: caption {first} belongs to image {int(indices[first])}, but there are {n} images")
    return indices


def to_numpy(x: Tensor) -> Scores:
    """Copies a tensor to a float64 NumPy array."""
    return x.detach().cpu().double().numpy()


def _mean_cosine(units: Tensor) -> float:
    """Mean over i != j of `<u_i, u_j>`, by `sum_{i != j} <u_i, u_j> = |sum_i u_i|^2 - n`."""
    n = len(units)
    return float(((units.sum(0) ** 2).sum() - n) / (n * (n - 1))) if n > 1 else float("nan")


def _first(mask: Tensor) -> int:
    return int(mask.nonzero()[0, 0])
