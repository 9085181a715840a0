"""One step's samples, as a model takes them and as a loss tells them apart."""

from dataclasses import dataclass

from torch import Tensor

from hf_unlearn.models.contrastive import ModelInputs


@dataclass(frozen=True)
class TrainingBatch:
    """A batch ready for a model.

    Attributes:
        inputs: what the model's `forward` takes, batch first.
        is_unlearn: `[n]` bool, which samples are to be unlearned.
        index: `[n]` place of each sample: retain rows first, then unlearn rows. Where retain is a stream, place in the
            unlearn split, and -1 for retain rows.
        caption: `[n]` which of its captions each picture is paired with; None for random views.
    """

    inputs: ModelInputs
    is_unlearn: Tensor
    index: Tensor
    caption: Tensor | None = None
