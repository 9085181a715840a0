"""Machine unlearning for contrastive encoders on the Hugging Face stack.

    from hf_unlearn import AlignmentCalibrationConfig, AlignmentCalibrationTrainer

The names on this page are imported from `hf_unlearn` itself. The others are imported from their modules:

- `hf_unlearn.losses`: the three quantities of a batch, and the loss terms as functions of them
- `hf_unlearn.data`: sources, requests, splits, streams and views
- `hf_unlearn.models`: families, loading, adapters
- `hf_unlearn.metrics`: functions of arrays, a file a metric
- `hf_unlearn.training`: what trainers share
- `hf_unlearn.methods`: a file a method, with its config, its trainer and all that is said of it
- `hf_unlearn.audit`: what a data owner runs
- `hf_unlearn.hub`: cards, publishing, verification
- `hf_unlearn.runs` and `hf_unlearn.benchmarks`: a run from its options to its cards, and what recipes measure with
- `hf_unlearn.records`, `hf_unlearn.figures` and `hf_unlearn.cli`: files, pictures and the terminal
"""

# The one list of what the package exports, and where from: editors and type checkers read it, and so does __init__.py.

from hf_unlearn.audit.recording import plan_audit as plan_audit
from hf_unlearn.audit.recording import record_embeddings as record_embeddings
from hf_unlearn.audit.run import run_audit as run_audit
from hf_unlearn.audit.settings import AuditSettings as AuditSettings
from hf_unlearn.benchmarks.oracles import load_oracle as load_oracle
from hf_unlearn.data.config import DataConfig as DataConfig
from hf_unlearn.data.openmoji import load_openmoji as load_openmoji
from hf_unlearn.data.shards import split_shards as split_shards
from hf_unlearn.data.sources import load_source as load_source
from hf_unlearn.data.splits import make_splits as make_splits
from hf_unlearn.errors import DivergenceError as DivergenceError
from hf_unlearn.errors import UserError as UserError
from hf_unlearn.hub.past_requests import past_rows as past_rows
from hf_unlearn.hub.publishing import publish_run as publish_run
from hf_unlearn.hub.verification import verify_repo as verify_repo
from hf_unlearn.methods import METHODS as METHODS
from hf_unlearn.methods import PAPER_METHODS as PAPER_METHODS
from hf_unlearn.methods.alignment_calibration import AlignmentCalibrationConfig as AlignmentCalibrationConfig
from hf_unlearn.methods.alignment_calibration import AlignmentCalibrationTrainer as AlignmentCalibrationTrainer
from hf_unlearn.methods.fine_tune import FineTuneConfig as FineTuneConfig
from hf_unlearn.methods.fine_tune import FineTuneTrainer as FineTuneTrainer
from hf_unlearn.methods.gradient_ascent import GradientAscentConfig as GradientAscentConfig
from hf_unlearn.methods.gradient_ascent import GradientAscentTrainer as GradientAscentTrainer
from hf_unlearn.methods.l1_sparsity import L1SparsityConfig as L1SparsityConfig
from hf_unlearn.methods.l1_sparsity import L1SparsityTrainer as L1SparsityTrainer
from hf_unlearn.methods.neg_grad import NegGradConfig as NegGradConfig
from hf_unlearn.methods.neg_grad import NegGradTrainer as NegGradTrainer
from hf_unlearn.methods.npo import NPOConfig as NPOConfig
from hf_unlearn.methods.npo import NPOTrainer as NPOTrainer
from hf_unlearn.methods.retrain import RetrainConfig as RetrainConfig
from hf_unlearn.methods.retrain import RetrainTrainer as RetrainTrainer
from hf_unlearn.methods.scrub import SCRUBConfig as SCRUBConfig
from hf_unlearn.methods.scrub import SCRUBTrainer as SCRUBTrainer
from hf_unlearn.methods.selective_synaptic_dampening import SSDConfig as SSDConfig
from hf_unlearn.methods.selective_synaptic_dampening import SSDTrainer as SSDTrainer
from hf_unlearn.methods.slug import SLUGConfig as SLUGConfig
from hf_unlearn.methods.slug import SLUGTrainer as SLUGTrainer
from hf_unlearn.methods.targeted_calibration import TargetedCalibrationConfig as TargetedCalibrationConfig
from hf_unlearn.methods.targeted_calibration import TargetedCalibrationTrainer as TargetedCalibrationTrainer
from hf_unlearn.methods.task_vector import TaskVectorConfig as TaskVectorConfig
from hf_unlearn.methods.task_vector import TaskVectorTrainer as TaskVectorTrainer
from hf_unlearn.models.loading import load_encoder as load_encoder
from hf_unlearn.models.moco import MoCoConfig as MoCoConfig
from hf_unlearn.models.moco import MoCoModel as MoCoModel
from hf_unlearn.models.simclr import SimCLRConfig as SimCLRConfig
from hf_unlearn.models.simclr import SimCLRModel as SimCLRModel
from hf_unlearn.training.config import UnlearningConfig as UnlearningConfig
from hf_unlearn.training.trainer import UnlearningTrainer as UnlearningTrainer

__version__: str
