"""Contrastive losses as pure functions of tensors: this layer imports torch only and knows no model and no Trainer."""

from hf_unlearn.losses.calibration import calibration_distances
from hf_unlearn.losses.functional import (
    info_nce,
    l1_norm,
    masked_mean,
    negative_alignment,
    retain_info_nce,
    similarity_drift,
)
from hf_unlearn.losses.partition import log_partition
from hf_unlearn.losses.sigmoid import SigmoidTerms
from hf_unlearn.losses.terms import ContrastiveTerms, CrossModalTerms, QueueTerms, TwoViewTerms

__all__ = [
    "ContrastiveTerms",
    "CrossModalTerms",
    "QueueTerms",
    "SigmoidTerms",
    "TwoViewTerms",
    "calibration_distances",
    "info_nce",
    "l1_norm",
    "log_partition",
    "masked_mean",
    "negative_alignment",
    "retain_info_nce",
    "similarity_drift",
]
