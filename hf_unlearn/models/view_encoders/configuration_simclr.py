"""Configuration of the SimCLR family."""

from .view_encoder import ViewEncoderConfig


class SimCLRConfig(ViewEncoderConfig):
    """SimCLR: two views of a picture attract, all other views of the batch repel.

    Args:
        temperature: what cosines are divided by in the loss.
        kwargs: the fields of `ViewEncoderConfig`.

    Source: Chen et al., arXiv 2002.05709; temperature as in the paper's CIFAR experiments.
    """

    model_type = "simclr"

    temperature: float = 0.5
