"""MoCo as a transformers model, known to the Auto classes and travelling with its code."""

from transformers import AutoConfig, AutoModel

from hf_unlearn.models.moco.configuration_moco import MoCoConfig
from hf_unlearn.models.moco.modeling_moco import MoCoModel, MoCoOutput

AutoConfig.register(MoCoConfig.model_type, MoCoConfig)
AutoModel.register(MoCoConfig, MoCoModel)
MoCoConfig.register_for_auto_class()
MoCoModel.register_for_auto_class("AutoModel")

__all__ = ["MoCoConfig", "MoCoModel", "MoCoOutput"]
