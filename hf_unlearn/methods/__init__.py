"""Unlearning methods: a Config and a Trainer each, in a file of its own."""

from hf_unlearn.methods.alignment_calibration import AlignmentCalibrationConfig, AlignmentCalibrationTrainer
from hf_unlearn.methods.fine_tune import FineTuneConfig, FineTuneTrainer
from hf_unlearn.methods.gradient_ascent import GradientAscentConfig, GradientAscentTrainer
from hf_unlearn.methods.l1_sparsity import L1SparsityConfig, L1SparsityTrainer
from hf_unlearn.methods.neg_grad import NegGradConfig, NegGradTrainer
from hf_unlearn.methods.npo import NPOConfig, NPOTrainer
from hf_unlearn.methods.retrain import RetrainConfig, RetrainTrainer
from hf_unlearn.methods.scrub import SCRUBConfig, SCRUBTrainer
from hf_unlearn.methods.selective_synaptic_dampening import SSDConfig, SSDTrainer
from hf_unlearn.methods.slug import SLUGConfig, SLUGTrainer
from hf_unlearn.methods.targeted_calibration import TargetedCalibrationConfig, TargetedCalibrationTrainer
from hf_unlearn.methods.task_vector import TaskVectorConfig, TaskVectorTrainer
from hf_unlearn.training.config import UnlearningConfig
from hf_unlearn.training.trainer import UnlearningTrainer

_PAPER: tuple[type[UnlearningTrainer], ...] = (
    RetrainTrainer,
    FineTuneTrainer,
    GradientAscentTrainer,
    NegGradTrainer,
    L1SparsityTrainer,
    AlignmentCalibrationTrainer,
)
_FURTHER: tuple[type[UnlearningTrainer], ...] = (
    TargetedCalibrationTrainer,
    NPOTrainer,
    SCRUBTrainer,
    TaskVectorTrainer,
    SSDTrainer,
    SLUGTrainer,
)

# Method id -> Trainer: the paper's in the order of its tables, then further ones.
METHODS: dict[str, type[UnlearningTrainer]] = {trainer.config_class.method: trainer for trainer in (*_PAPER, *_FURTHER)}
# The methods that the paper compares, and that a run takes by default.
PAPER_METHODS: tuple[str, ...] = tuple(trainer.config_class.method for trainer in _PAPER)

__all__ = [
    "METHODS",
    "PAPER_METHODS",
    "AlignmentCalibrationConfig",
    "AlignmentCalibrationTrainer",
    "FineTuneConfig",
    "FineTuneTrainer",
    "GradientAscentConfig",
    "GradientAscentTrainer",
    "L1SparsityConfig",
    "L1SparsityTrainer",
    "NPOConfig",
    "NPOTrainer",
    "NegGradConfig",
    "NegGradTrainer",
    "RetrainConfig",
    "RetrainTrainer",
    "SCRUBConfig",
    "SCRUBTrainer",
    "SLUGConfig",
    "SLUGTrainer",
    "SSDConfig",
    "SSDTrainer",
    "TargetedCalibrationConfig",
    "TargetedCalibrationTrainer",
    "TaskVectorConfig",
    "TaskVectorTrainer",
    "UnlearningConfig",
    "UnlearningTrainer",
]
