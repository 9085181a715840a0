"""From dataset rows to model inputs, in two steps: `encode` once per image, `batch` at every step on the device.

`encode` decodes and resizes pictures with the model's own image processor and tokenises captions, giving compact
tensors (uint8 pixels) that are kept in memory when they fit. `batch` augments and normalises a whole batch at once.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hf_unlearn.data.images import read_image, to_rgb
from hf_unlearn.data.views import BatchedViews, ViewConfig
from hf_unlearn.errors import UserError

Encoded = dict[str, Tensor]


class ContrastiveInputs(ABC):
    """How rows become batches for one kind of encoder; the image processor is the model's own."""

    def __init__(self, image_processor: Any) -> None:
        self.image_processor = image_processor

    @abstractmethod
    def encode(self, rows: Mapping[str, list[Any]]) -> Encoded:
        """Decode, resize and tokenise a batch of rows; every tensor has one entry a row."""

    @abstractmethod
    def batch(self, encoded: Encoded, seed: int | None) -> dict[str, Tensor]:
        """Model inputs for one step, on the tensors' device; `seed` draws augmentation, None means none."""

    def _resize(self, images: list[Any]) -> Tensor:
        """`[n, 3, H, W]` uint8 pictures at the model's size."""
        pixels = self.image_processor(
            [read_image(image) if isinstance(image, Mapping) else to_rgb(image) for image in images],
            do_rescale=False,
            do_normalize=False,
            return_tensors="pt",
        )["pixel_values"]
        return pixels if pixels.dtype == torch.uint8 else pixels.round().clamp(0, 255).to(torch.uint8)

    def normalise(self, pixels: Tensor) -> Tensor:
        """What the image processor does after resizing, for a whole batch on its device."""
        values = pixels.float() * getattr(self.image_processor, "rescale_factor", 1 / 255)
        if getattr(self.image_processor, "do_normalize", True):
            mean, std = (
                torch.tensor(statistic, device=pixels.device).view(3, 1, 1)
                for statistic in (self.image_processor.image_mean, self.image_processor.image_std)
            )
            values = (values - mean) / std
        return values


class ImageTextInputs(ContrastiveInputs):
    """Image-caption pairs for a dual encoder.

    An image may have several captions: training draws one of them at each visit, the evaluation loss takes the first,
    and metrics use them all.

    Args:
        processor: the model's processor, with `image_processor` and `tokenizer`.
        max_length: tokens a caption is padded and cut to.
        flip_probability: of mirroring a picture in training (the paper's COCO setting: .5).
    """

    def __init__(self, processor: Any, max_length: int, flip_probability: float = 0.0) -> None:
        if not hasattr(processor, "image_processor") or not hasattr(processor, "tokenizer"):
            raise UserError(
                f"{type(processor).__name__} cannot prepare image-text pairs; pass the processor saved with the model "
                "(AutoProcessor.from_pretrained), which holds an image_processor and a tokenizer"
            )
        super().__init__(processor.image_processor)
        self.tokenizer = processor.tokenizer
        self.max_length = max_length
        self.flip_probability = flip_probability

    def tokenise(self, captions: list[str]) -> Encoded:
        """`[m, max_length]` token ids (and attention mask, where the tokenizer gives one) of captions."""
        tokens = self.tokenizer(
            captions, padding="max_length", truncation=True, max_length=self.max_length, return_tensors="pt"
        )
        return {name: tokens[name] for name in self.tokenizer.model_input_names if name in tokens}

    def encode(self, rows: Mapping[str, list[Any]]) -> Encoded:
        """`pixels [n, 3, H, W]` uint8, `caption_counts [n]`, and per tokenizer output `[n, captions, max_length]`."""
        captions: list[list[str]] = rows["captions"]
        width = max(map(len, captions))
        tokens = self.tokenise([texts[i % len(texts)] for texts in captions for i in range(width)])
        return {
            "pixels": self._resize(rows["image"]),
            "caption_counts": torch.tensor([len(texts) for texts in captions]),
            **{name: value.view(len(captions), width, -1).int() for name, value in tokens.items()},
        }

    def batch(self, encoded: Encoded, seed: int | None) -> dict[str, Tensor]:
        """`pixel_values` and token tensors of one caption an image: drawn with a seed, the first one without."""
        pixels, counts = encoded["pixels"], encoded["caption_counts"]
        chosen = torch.zeros_like(counts)
        if seed is not None:
            generator = torch.Generator(pixels.device).manual_seed(seed)
            draws = torch.rand(2, len(pixels), generator=generator, device=pixels.device)
            chosen = (draws[0] * counts).long()
            mirrored = draws[1] < self.flip_probability
            pixels = torch.where(mirrored.view(-1, 1, 1, 1), pixels.flip(-1), pixels)
        rows = torch.arange(len(pixels), device=pixels.device)
        tokens = {name: encoded[name][rows, chosen].long() for name in self.token_names(encoded)}
        return {"pixel_values": self.normalise(pixels), **tokens}

    def captions(self, encoded: Encoded) -> tuple[Encoded, Tensor]:
        """Token tensors `[m, max_length]` of all captions of a batch, and the row `[m]` of each."""
        counts, names = encoded["caption_counts"], self.token_names(encoded)
        present = torch.arange(encoded[names[0]].shape[1], device=counts.device) < counts[:, None]
        owner = torch.arange(len(counts), device=counts.device).repeat_interleave(counts)
        return {name: encoded[name][present].long() for name in names}, owner

    @staticmethod
    def token_names(encoded: Encoded) -> list[str]:
        """Names of the tokenizer's tensors among the encoded ones."""
        return [name for name in encoded if name not in ("pixels", "caption_counts", "index", "is_unlearn")]


class ImageViewInputs(ContrastiveInputs):
    """Two augmented views of each image for SimCLR and MoCo.

    Args:
        image_processor: the model's image processor; it fixes the size at which pictures are kept.
        views: how a view is drawn; its size and normalisation are taken from the image processor.
    """

    def __init__(self, image_processor: Any, views: ViewConfig) -> None:
        super().__init__(image_processor)
        self.views = BatchedViews(views.matching(image_processor))

    def encode(self, rows: Mapping[str, list[Any]]) -> Encoded:
        """`pixels [n, 3, H, W]` uint8."""
        return {"pixels": self._resize(rows["image"])}

    def batch(self, encoded: Encoded, seed: int | None) -> dict[str, Tensor]:
        """`pixel_values [n, 2, 3, H, W]`: two independent views, or twice the plain picture without a seed."""
        pixels = encoded["pixels"]
        if seed is None:
            return {"pixel_values": self.normalise(pixels).unsqueeze(1).expand(-1, 2, -1, -1, -1)}
        return {"pixel_values": self.views(pixels, seed=seed)}
