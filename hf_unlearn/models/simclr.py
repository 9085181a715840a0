"""SimCLR as a transformers model, known to the Auto classes and travelling with its code."""

from transformers import AutoConfig, AutoModel

from hf_unlearn.losses import ContrastiveTerms, TwoViewTerms
from hf_unlearn.losses.terms import constant
from hf_unlearn.models.contrastive import terms_from_outputs
from hf_unlearn.models.view_encoders.configuration_simclr import SimCLRConfig
from hf_unlearn.models.view_encoders.modeling_simclr import SimCLRModel, SimCLROutput

AutoConfig.register(SimCLRConfig.model_type, SimCLRConfig)
AutoModel.register(SimCLRConfig, SimCLRModel)
SimCLRConfig.register_for_auto_class()
SimCLRModel.register_for_auto_class("AutoModel")


@terms_from_outputs.register
def _(model: SimCLRModel, outputs: SimCLROutput) -> ContrastiveTerms:
    assert outputs.x_embeds is not None and outputs.y_embeds is not None  # an output's fields are optional
    scale = constant(1 / model.config.temperature, outputs.x_embeds.device)
    return TwoViewTerms(outputs.x_embeds, outputs.y_embeds, scale, unit=True)


__all__ = ["SimCLRConfig", "SimCLRModel", "SimCLROutput"]
