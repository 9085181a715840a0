"""SimCLR as a transformers model, known to the Auto classes and travelling with its code."""

from transformers import AutoConfig, AutoModel

from hf_unlearn.models.simclr.configuration_simclr import SimCLRConfig
from hf_unlearn.models.simclr.modeling_simclr import SimCLRModel, SimCLROutput

AutoConfig.register(SimCLRConfig.model_type, SimCLRConfig)
AutoModel.register(SimCLRConfig, SimCLRModel)
SimCLRConfig.register_for_auto_class()
SimCLRModel.register_for_auto_class("AutoModel")

__all__ = ["SimCLRConfig", "SimCLRModel", "SimCLROutput"]
