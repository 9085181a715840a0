"""The SimCLR family: one encoder, two views."""

from dataclasses import dataclass

from torch import Tensor
from transformers.utils import ModelOutput

from .configuration_simclr import SimCLRConfig
from .view_encoder import ViewEncoder, ViewEncoderModel
from .view_encoder_operations import Unit


@dataclass
class SimCLROutput(ModelOutput):
    """Unit-norm float32 embeddings `[n, d]` of the first and of the second view."""

    x_embeds: Tensor | None = None
    y_embeds: Tensor | None = None


class SimCLRModel(ViewEncoderModel):
    """Encoder of SimCLR.

    Args:
        config: what to build; weights are random until loaded.

    Source: Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations", arXiv 2002.05709.
    """

    config: SimCLRConfig
    config_class = SimCLRConfig
    base_model_prefix = "simclr"

    def __init__(self, config: SimCLRConfig) -> None:
        super().__init__(config)
        self.encoder = ViewEncoder(config)
        self.post_init()

    def forward(self, pixel_values: Tensor) -> SimCLROutput:
        """Embed two views of every picture in one pass, so that they share the batch statistics.

        Args:
            pixel_values: `[n, 2, 3, H, W]`, normalised.

        Returns:
            The embeddings of the first and the second views.
        """
        embeds = Unit.apply(self.encoder(pixel_values.flatten(0, 1)).float()).unflatten(0, (-1, 2))
        self.count_batches(of_forward=True)
        x_embeds, y_embeds = embeds.unbind(1)
        return SimCLROutput(x_embeds=x_embeds, y_embeds=y_embeds)
