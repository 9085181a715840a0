"""The SimCLR family: one encoder, two views."""

from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import ModelOutput

from .configuration_simclr import SimCLRConfig
from .view_encoder import ViewEncoder, pretrained_backbone


@dataclass
class SimCLROutput(ModelOutput):
    """Unit-norm float32 embeddings `[n, d]` of the first and of the second view."""

    x_embeds: Tensor | None = None
    y_embeds: Tensor | None = None


class SimCLRModel(PreTrainedModel):
    """Encoder of SimCLR.

    Args:
        config: what to build; weights are random until loaded.

    Source: Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations", arXiv 2002.05709.
    """

    config: SimCLRConfig
    config_class = SimCLRConfig
    base_model_prefix = "simclr"
    main_input_name = "pixel_values"

    def __init__(self, config: SimCLRConfig) -> None:
        super().__init__(config)
        self.encoder = ViewEncoder(config)
        self.post_init()

    @classmethod
    def from_vision_pretrained(cls, name: str, **settings: Any) -> "SimCLRModel":
        """Start from a pretrained vision model, with a fresh projection head.

        Args:
            name: Hub id or folder of the vision model.
            settings: fields of `SimCLRConfig`.

        Returns:
            A model whose config names the backbone's architecture, so that reloading it fetches nothing.
        """
        backbone = pretrained_backbone(name)
        model = cls(SimCLRConfig(backbone_config=backbone.config, **settings))
        model.encoder.backbone.load_state_dict(backbone.state_dict())
        return model

    def get_image_features(self, pixel_values: Tensor) -> BaseModelOutputWithPooling:
        """Backbone features, before the projection head.

        Args:
            pixel_values: `[n, 3, H, W]`, normalised.

        Returns:
            An output whose `pooler_output` is `[n, D]`, not normalised.
        """
        return BaseModelOutputWithPooling(pooler_output=self.encoder.features(pixel_values))

    def get_projected_features(self, pixel_values: Tensor) -> Tensor:
        """Projections `[n, d]`, not normalised, of `[n, 3, H, W]` normalised pixels."""
        return self.encoder(pixel_values)

    def forward(self, pixel_values: Tensor) -> SimCLROutput:
        """Embed two views of every picture in one pass, so that they share the batch statistics.

        Args:
            pixel_values: `[n, 2, 3, H, W]`, normalised.

        Returns:
            The embeddings of the first and the second views.
        """
        embeds = F.normalize(self.encoder(pixel_values.flatten(0, 1)).float(), dim=-1).unflatten(0, (-1, 2))
        return SimCLROutput(x_embeds=embeds[:, 0], y_embeds=embeds[:, 1])
