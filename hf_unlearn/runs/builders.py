"""Small encoders that the recipes pre-train when the user names no model."""

from collections.abc import Callable, Collection
from dataclasses import fields
from inspect import signature

from transformers import PreTrainedConfig, PreTrainedModel

from hf_unlearn.data.resizing import Processor
from hf_unlearn.data.views import VIEW_PRESETS
from hf_unlearn.errors import UserError, listed
from hf_unlearn.models.contrastive import is_dual_encoder
from hf_unlearn.models.image_processor import image_processor_of
from hf_unlearn.models.loading import load_image_processor, load_vision_model
from hf_unlearn.models.moco import MoCoModel
from hf_unlearn.models.simclr import SimCLRModel
from hf_unlearn.models.small_clip import build_small_clip
from hf_unlearn.models.view_encoders.view_encoder import ViewEncoderModel
from hf_unlearn.runs.command_line import Run
from hf_unlearn.runs.run_data import UnlearningTask

OF_RESNETS = ("backbone", "stem", "width", "image_size")  # fields that describe the backbone
# From a run and its task to an untrained model and its processor.
Builder = Callable[[Run, UnlearningTask], tuple[PreTrainedModel, Processor]]


def small_clip(run: Run, task: UnlearningTask) -> tuple[PreTrainedModel, Processor]:
    """A CLIP of about 1 M parameters with a tokenizer trained on the captions of train."""
    if run.arguments.vision_model is not None:
        raise UserError("--vision_model is the backbone of a SimCLR or MoCo; for a CLIP, name --initial_model")
    if "captions" not in task.train.column_names:
        raise UserError("a CLIP needs captions; name their column with --caption_column")
    _check_settings(run, tuple(signature(build_small_clip).parameters)[1:], "small CLIP")
    captions = [caption for captions in task.train["captions"] for caption in captions]
    return build_small_clip(captions, **run.model)


def simclr(run: Run, task: UnlearningTask) -> tuple[PreTrainedModel, Processor]:
    """A SimCLR with the fields of the config's `model` section, on the run's vision model if it names one."""
    return _view_encoder(SimCLRModel, run)


def moco(run: Run, task: UnlearningTask) -> tuple[PreTrainedModel, Processor]:
    """A MoCo with the fields of the config's `model` section, on the run's vision model if it names one."""
    return _view_encoder(MoCoModel, run)


def _view_encoder(family: type[ViewEncoderModel], run: Run) -> tuple[PreTrainedModel, Processor]:
    known = {each.name for each in fields(family.config_class)} - {each.name for each in fields(PreTrainedConfig)}
    _check_settings(run, known, family.__name__.removesuffix("Model"))
    name, revision = run.arguments.vision_model, run.arguments.vision_revision
    if name is None:
        return family(family.config_class(**run.model)), image_processor_of(VIEW_PRESETS[run.data.views])
    settings = {field: value for field, value in run.model.items() if field not in OF_RESNETS}
    model = family.from_vision_model(load_vision_model(name, revision), **settings)
    return model, load_image_processor(name, revision=revision)


def _check_settings(run: Run, known: Collection[str], title: str) -> None:
    """Refuse fields of the `model` section that the architecture has not, and that nothing would read."""
    if unknown := [name for name in run.model if name not in known]:
        raise UserError(f"model.{unknown[0]}: a {title} has no such setting; choose from {listed(sorted(known))}")


def check_family(family: str | None, model: PreTrainedModel) -> None:
    """Refuse a model of another family than the run's, whose options mean nothing to it."""
    own = "clip" if is_dual_encoder(model) else model.config.model_type
    if family not in (None, own):
        raise UserError(
            f"the family {family}, from --family or the config, is not that of the model, a {type(model).__name__}; "
            "leave it out, or name a model of that family"
        )


BUILDERS: dict[str, Builder] = {"clip": small_clip, "simclr": simclr, "moco": moco}
