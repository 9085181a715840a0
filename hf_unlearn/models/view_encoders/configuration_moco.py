"""Configuration of the MoCo family."""

from .view_encoder import ViewEncoderConfig


class MoCoConfig(ViewEncoderConfig):
    """MoCo: a query attracts the momentum key of its picture's other view and repels a queue of older keys.

    Args:
        temperature: what cosines are divided by in the loss.
        projection_batch_norm: off, as in MoCo v2's head.
        momentum: share of its old weights that the key encoder keeps at a step.
        queue_size: K, number of keys that serve as negatives.
        batch_norm_splits: parts of a batch that are normalised on their own, in the place of `sync_batch_norm`, so that
            batch statistics do not give the positive away; 0 for none, 8 in the reference.
        kwargs: the fields of `ViewEncoderConfig`.

    Raises:
        ValueError: if a number is out of range.

    Source: He et al., arXiv 1911.05722 and 2003.04297; temperature as in the paper's CIFAR experiments.
    """

    model_type = "moco"

    temperature: float = 0.1
    projection_batch_norm: bool = False
    momentum: float = 0.99
    queue_size: int = 4096
    batch_norm_splits: int = 0

    def __post_init__(self, **kwargs: object) -> None:
        if not 0 <= self.momentum < 1 or self.queue_size < 1 or self.batch_norm_splits < 0:
            raise ValueError(
                f"momentum {self.momentum} must be in [0, 1), queue_size {self.queue_size} at least 1 and "
                f"batch_norm_splits {self.batch_norm_splits} at least 0."
            )
        super().__post_init__(**kwargs)
