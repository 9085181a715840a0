"""Zero-shot classification: is a picture nearest to the prompts of its own class?"""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from hf_unlearn.errors import UserError
from hf_unlearn.metrics._checks import check_embeddings


@dataclass(frozen=True)
class ZeroShot:
    """What zero-shot classification finds.

    Attributes:
        accuracy: Share of pictures whose class is found, in percent.
        hits: `[n]` whether each one's is.
    """

    accuracy: float
    hits: npt.NDArray[np.bool_] = field(repr=False)


@torch.no_grad()
def zero_shot(images: Tensor, prompts: Tensor, labels: npt.NDArray[np.int64]) -> ZeroShot:
    """Classify pictures by the class whose prompts lie nearest, without training.

    A class lies at the mean of its prompts' directions: `w_c = norm(mean_t norm(p_ct))`, and a picture is of the class
    `argmax_c x . w_c`.

    Args:
        images: `[n, d]` embeddings of pictures.
        prompts: `[classes, templates, d]` embeddings of each class's name in each template.
        labels: `[n]` class of each picture.

    Raises:
        UserError: There is no picture, labels are not one a picture and below the number of classes, or an embedding
            is NaN, infinite or zero.

    Source:
        Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", arXiv 2103.00020,
        section 3.1.4.

    Example:
        >>> classes = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])
        >>> zero_shot(torch.tensor([[2.0, 1.0], [3.0, 1.0]]), classes, np.array([0, 1])).accuracy
        50.0
    """
    if len(images) == 0:
        raise UserError("zero-shot classification needs pictures, and there are none")
    if len(labels) != len(images) or labels.min() < 0 or labels.max() >= len(prompts):
        raise UserError(
            f"zero-shot classification needs a class from 0 to {len(prompts) - 1} for each of {len(images)} pictures"
        )
    pictures, texts = check_embeddings(images, "pictures"), check_embeddings(prompts.flatten(0, 1), "prompts")
    directions = F.normalize(texts.view(prompts.shape).mean(1), dim=-1)
    found = (pictures @ directions.to(pictures).T).argmax(1).numpy(force=True)
    hits = found == labels
    return ZeroShot(100 * float(hits.mean()), hits)
