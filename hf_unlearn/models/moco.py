"""MoCo as a transformers model, known to the Auto classes and travelling with its code."""

from transformers import AutoConfig, AutoModel

from hf_unlearn.losses import ContrastiveTerms, QueueTerms
from hf_unlearn.losses.terms import constant
from hf_unlearn.models.contrastive import terms_from_outputs
from hf_unlearn.models.view_encoders.configuration_moco import MoCoConfig
from hf_unlearn.models.view_encoders.modeling_moco import MoCoModel, MoCoOutput

AutoConfig.register(MoCoConfig.model_type, MoCoConfig)
AutoModel.register(MoCoConfig, MoCoModel)
MoCoConfig.register_for_auto_class()
MoCoModel.register_for_auto_class("AutoModel")


@terms_from_outputs.register
def _(model: MoCoModel, outputs: MoCoOutput) -> ContrastiveTerms:
    assert (
        outputs.x_embeds is not None and outputs.y_embeds is not None and outputs.queue is not None
    )  # an output's fields are optional
    scale = constant(1 / model.config.temperature, outputs.x_embeds.device)
    return QueueTerms(outputs.x_embeds, outputs.y_embeds, scale, outputs.queue, unit=True)


__all__ = ["MoCoConfig", "MoCoModel", "MoCoOutput"]
