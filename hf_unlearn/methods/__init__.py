"""Unlearning methods: a Config and a Trainer each, in a file of its own."""

from hf_unlearn.methods.alignment_calibration import AlignmentCalibrationConfig, AlignmentCalibrationTrainer
from hf_unlearn.methods.fine_tune import FineTuneConfig, FineTuneTrainer
from hf_unlearn.methods.gradient_ascent import GradientAscentConfig, GradientAscentTrainer
from hf_unlearn.methods.l1_sparsity import L1SparsityConfig, L1SparsityTrainer
from hf_unlearn.methods.neg_grad import NegGradConfig, NegGradTrainer
from hf_unlearn.methods.retrain import RetrainConfig, RetrainTrainer
from hf_unlearn.methods.trainer import UnlearningConfig, UnlearningTrainer

_TRAINERS: tuple[type[UnlearningTrainer], ...] = (
    RetrainTrainer,
    FineTuneTrainer,
    GradientAscentTrainer,
    NegGradTrainer,
    L1SparsityTrainer,
    AlignmentCalibrationTrainer,
)

# Method id -> Trainer, in the order of the paper's tables.
METHODS: dict[str, type[UnlearningTrainer]] = {trainer.config_class.method: trainer for trainer in _TRAINERS}

__all__ = [
    "METHODS",
    "AlignmentCalibrationConfig",
    "AlignmentCalibrationTrainer",
    "FineTuneConfig",
    "FineTuneTrainer",
    "GradientAscentConfig",
    "GradientAscentTrainer",
    "L1SparsityConfig",
    "L1SparsityTrainer",
    "NegGradConfig",
    "NegGradTrainer",
    "RetrainConfig",
    "RetrainTrainer",
    "UnlearningConfig",
    "UnlearningTrainer",
]
