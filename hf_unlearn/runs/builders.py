"""Small encoders that the recipes pre-train when the user names no model."""

from collections.abc import Callable
from typing import Any

from transformers import PreTrainedModel

from hf_unlearn.data.views import VIEW_PRESETS
from hf_unlearn.errors import UserError
from hf_unlearn.models.image_processor import image_processor_of
from hf_unlearn.models.moco import MoCoConfig, MoCoModel
from hf_unlearn.models.simclr import SimCLRConfig, SimCLRModel
from hf_unlearn.models.small_clip import build_small_clip
from hf_unlearn.runs.arguments import Run
from hf_unlearn.runs.run_data import UnlearningTask

# From a run and its task to an untrained model and its processor.
Builder = Callable[[Run, UnlearningTask], tuple[PreTrainedModel, Any]]


def small_clip(run: Run, task: UnlearningTask) -> tuple[PreTrainedModel, Any]:
    """A CLIP of about 1 M parameters with a tokenizer trained on the captions of train."""
    if "captions" not in task.train.column_names:
        raise UserError("a CLIP needs captions; name their column with --caption_column")
    captions = [caption for captions in task.train["captions"] for caption in captions]
    return build_small_clip(captions, **run.model)


def simclr(run: Run, task: UnlearningTask) -> tuple[PreTrainedModel, Any]:
    """A SimCLR with the fields of the config's `model` section."""
    return SimCLRModel(SimCLRConfig(**run.model)), image_processor_of(VIEW_PRESETS[run.data.views])


def moco(run: Run, task: UnlearningTask) -> tuple[PreTrainedModel, Any]:
    """A MoCo with the fields of the config's `model` section."""
    return MoCoModel(MoCoConfig(**run.model)), image_processor_of(VIEW_PRESETS[run.data.views])


BUILDERS: dict[str, Builder] = {"clip": small_clip, "simclr": simclr, "moco": moco}
