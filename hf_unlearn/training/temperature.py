"""The bound that CLIP sets its learned temperature."""

import math
from collections.abc import Callable

from torch import nn
from transformers import TrainerCallback

from hf_unlearn.models.contrastive import unwrap
from hf_unlearn.models.sharding import local

MAX_LOGIT_SCALE = 100.0


class LogitScaleBound(TrainerCallback):
    """Keeps a dual encoder's learned inverse temperature `exp(logit_scale)` at most 100, or where it began if above.

    The weight is clamped after each update, not its exponential in the loss, whose gradient would be lost there: a
    model that begins at the bound, as OpenAI's CLIP does, or above it, as SigLIP does, can leave it downwards.

    Source: Radford et al. 2021 (arXiv 2103.00020), section 2.5; the weight is clamped as open_clip does.

    Args:
        model: gives the model that is trained, which may be wrapped once training begins; it starts as it is now.
    """

    def __init__(self, model: Callable[[], nn.Module]) -> None:
        self._model = model
        start = getattr(unwrap(model()), "logit_scale", None)
        self._largest = None if start is None else max(math.log(MAX_LOGIT_SCALE), start.item())

    def on_optimizer_step(self, *_: object, **kwargs: object) -> None:
        """Put back what an update moved beyond the bound."""
        if self._largest is not None:
            local(unwrap(self._model()).logit_scale.detach()).clamp_(max=self._largest)  # type: ignore[union-attr,operator]
