"""Copies that are not the same pixels: transformed pictures to attack with, near-copies to plant in retain."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from datasets import Dataset, DatasetDict, concatenate_datasets
from PIL import Image as PILImage
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from hf_unlearn.data.encoded import EncodedSplit
from hf_unlearn.data.images import to_rgb
from hf_unlearn.data.preprocessing import Encoded
from hf_unlearn.errors import UserError

Transform = Callable[[Tensor], Tensor]


def crop(pixels: Tensor) -> Tensor:
    """The middle three quarters of each side, enlarged to the whole."""
    height, width = pixels.shape[-2:]
    middle = transforms.center_crop(pixels, [max(1, 3 * height // 4), max(1, 3 * width // 4)])
    return transforms.resize(middle, [height, width])


def colour(pixels: Tensor) -> Tensor:
    """Brighter, paler and of another hue: a fixed draw of a colour jitter."""
    changed = transforms.adjust_saturation(transforms.adjust_brightness(pixels, 1.2), 0.7)
    return transforms.adjust_hue(changed, 0.05)


def jpeg(pixels: Tensor, quality: int = 40) -> Tensor:
    """Compressed and read again, on the CPU."""
    return torch.stack([transforms.jpeg(picture.cpu(), quality) for picture in pixels]).to(pixels.device)


def near_copy(pixels: Tensor, number: int = 0) -> Tensor:
    """The picture a little darker: the same to the eye and to a difference hash, but no exact copy.

    Args:
        pixels: `[n, 3, H, W]` uint8 pictures.
        number: Which of several copies; each is 3% darker than the one before.

    Returns:
        Pictures of the same shape.
    """
    return transforms.adjust_brightness(pixels, 0.97 ** (number + 1))


# One fixed transform each of `[n, 3, H, W]` uint8 pictures: whoever attacks with copies changes members and non-members
# alike.
TRANSFORMS: dict[str, Transform] = {
    "flip": transforms.horizontal_flip,
    "crop": crop,
    "colour": colour,
    "jpeg": jpeg,
    "near-identical": near_copy,
}


class DerivedSplit(EncodedSplit):
    """Some rows of an encoded split, their pictures changed on the way, without encoding anything anew.

    Args:
        split: The encoded rows.
        indices: Which of them, in which order; default all.
        change: Applied to `pixels`; default nothing.
    """

    def __init__(
        self, split: EncodedSplit, indices: Sequence[int] | None = None, change: Transform | None = None
    ) -> None:
        self.split, self.preprocessor, self.resident = split, split.preprocessor, None
        self.indices = range(len(split)) if indices is None else indices
        self.change = change

    def __len__(self) -> int:
        return len(self.indices)

    def rows(self, indices: Sequence[int]) -> Encoded:
        """The encoded rows at `indices`, in that order."""
        encoded = self.split.rows([self.indices[i] for i in indices])
        return encoded if self.change is None else {**encoded, "pixels": self.change(encoded["pixels"])}


def plant_near_copies(splits: DatasetDict, samples: int, copies: int) -> DatasetDict:
    """Put near-copies of unlearn pictures, captions included, into retain: what many requests leave behind.

    A model retrained on retain then still knows these pictures, and so should an unlearned one: what an evaluation
    compares with is Retrain, not a model that knows nothing of them.

    Args:
        splits: `retain` and `unlearn` with the columns `id` and `image`, and others.
        samples: The first so many unlearn rows are copied; splits drawn by the library are in random order.
        copies: Near-copies of each of them.

    Returns:
        The splits, the copies at the end of `retain` with ids such as `1F355~copy-0`.

    Raises:
        UserError: There are fewer unlearn rows than `samples`, or nothing is to be planted.

    Source: "Forgetting Similar Samples: Can Machine Unlearning Do it Better?", arXiv 2601.06938.
    """
    unlearn = splits["unlearn"]
    if not 1 <= samples <= len(unlearn) or copies < 1:
        raise UserError(
            f"near-copies of {samples} unlearn pictures, {copies} of each, cannot be planted: there are "
            f"{len(unlearn)} pictures; choose 1 to {len(unlearn)} of them and at least one copy"
        )
    rows = [
        {**row, "image": _near_copy_of(row["image"], number), "id": f"{row['id']}~copy-{number}"}
        for row in unlearn.select(range(samples))
        for number in range(copies)
    ]
    planted = Dataset.from_list(rows, features=unlearn.features)
    return DatasetDict({**splits, "retain": concatenate_datasets([splits["retain"], planted])})


def _near_copy_of(image: PILImage.Image, number: int) -> PILImage.Image:
    pixels = torch.from_numpy(np.array(to_rgb(image))).permute(2, 0, 1)[None]
    return PILImage.fromarray(near_copy(pixels, number)[0].permute(1, 2, 0).contiguous().numpy())
