"""From dataset rows to model inputs, in two steps: `encode` once per image, `batch` at every step on the device.

`encode` decodes and resizes pictures with the model's own image processor and tokenises captions, giving compact
tensors (uint8 pixels) that are kept in memory when they fit. `batch` augments and normalises a whole batch at once.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from reprlib import repr as shortened
from typing import Any, ClassVar, Self

import torch
from PIL import Image as PILImage
from torch import Tensor

from hf_unlearn.data.images import check_size, read_image, to_rgb
from hf_unlearn.data.resizing import Preparation, Processor, check_parts, resize
from hf_unlearn.data.views import BatchedViews, Compiler, ViewConfig
from hf_unlearn.errors import UserError, listed

PIXELS_AT_ONCE = 2**26  # 200 MB of decoded pictures

Encoded = dict[str, Tensor]


class RowError(UserError):
    """A row that cannot be encoded, known by its place among the rows given.

    Args:
        column: where the fault is.
        place: of the row.
        fault: what is wrong, and the remedy.
    """

    def __init__(self, column: str, place: int, fault: str) -> None:
        super().__init__(f"Column '{column}' of row {place}: {fault}")
        self.column, self.place, self.fault = column, place, fault

    def named(self, row: str) -> UserError:
        """The same fault of a row that has a name."""
        return UserError(f"Column '{self.column}' of row {row}: {self.fault}")


class ContrastivePreprocessor(ABC):
    """How rows become batches for one kind of encoder; the image processor is the model's own.

    Raises:
        UserError: the image processor does more than to resize pictures to one size and normalise them.
    """

    columns: ClassVar[tuple[str, ...]] = ("image",)
    """What `encode` reads of rows."""

    def __init__(self, image_processor: Processor) -> None:
        self.image_processor = image_processor
        self.preparation = Preparation.of(image_processor)

    def check_columns(self, present: Iterable[str]) -> None:
        """Refuse rows without a column that `encode` reads.

        Raises:
            UserError: a column is missing.
        """
        present = list(present)
        missing = [name for name in self.columns if name not in present]
        if missing:
            raise UserError(
                f"The rows have no column '{missing[0]}', only {listed(present)}; rename the one that holds it "
                "(rename_column), or read the data with load_source, which is told the columns' names"
            )

    @abstractmethod
    def encode(self, rows: Mapping[str, list[object]]) -> Encoded:
        """Decode, resize and tokenise a batch of rows; every tensor has one entry a row.

        Raises:
            RowError: a row holds something else than pictures and captions, or a picture that cannot be read.
        """

    @abstractmethod
    def batch(self, encoded: Encoded, seed: int | None) -> dict[str, Tensor]:
        """Model inputs for one step, on the tensors' device; `seed` draws augmentation, None means none."""

    def compiled(self, compiler: Compiler) -> Self:
        """The same inputs with the work of each step compiled, where there is any to speak of."""
        return self

    def _resize(self, images: list[object]) -> Tensor:
        """`[n, 3, H, W]` uint8 pictures at the model's size; not more large ones at a time than `PIXELS_AT_ONCE`."""
        pictures: list[Tensor] = []
        decoded: list[PILImage.Image] = []
        room = PIXELS_AT_ONCE
        for place, image in enumerate(images):
            decoded.append(_picture(image, place))
            room -= decoded[-1].width * decoded[-1].height
            if room <= 0 or place == len(images) - 1:
                pictures += resize(self.image_processor, decoded)
                decoded, room = [], PIXELS_AT_ONCE
        size = (self.preparation.height, self.preparation.width)
        for place, picture in enumerate(pictures):
            if picture.shape[-2:] != size:
                raise RowError(
                    "image",
                    place,
                    f"{type(self.image_processor).__name__} makes its height and width {tuple(picture.shape[-2:])}, "
                    f"but those of a square picture {size}; set do_center_crop, or a size with height and width",
                )
        pixels = torch.stack(pictures)
        return pixels if pixels.dtype == torch.uint8 else pixels.round().clamp(0, 255).to(torch.uint8)

    def normalise(self, pixels: Tensor) -> Tensor:
        """What the image processor does after resizing, for a whole batch on its device."""
        return self.preparation.normalise(pixels * (1 / 255))


class ImageTextPreprocessor(ContrastivePreprocessor):
    """Image-caption pairs for a dual encoder.

    An image may have several captions: training draws one of them at each visit, the evaluation loss takes the first,
    and metrics use them all. One that has a single caption may have it without a list around it.

    Args:
        processor: the model's processor, with `image_processor` and `tokenizer`.
        max_length: tokens a caption is padded and cut to.
        flip_probability: of mirroring a picture in training (the paper's COCO setting: .5).
        masked: whether the text encoder is told which tokens are padding.
    """

    columns = ("image", "captions")

    def __init__(
        self, processor: Processor, max_length: int, flip_probability: float = 0.0, masked: bool = True
    ) -> None:
        check_parts(processor)
        super().__init__(processor.image_processor)
        self.tokenizer = processor.tokenizer
        self.max_length = max_length
        self.flip_probability = flip_probability
        self.masked = masked

    def tokenise(self, captions: list[str]) -> Encoded:
        """`[m, max_length]` token ids (and attention mask, where the tokenizer gives one) of captions."""
        tokens = self.tokenizer(
            captions, padding="max_length", truncation=True, max_length=self.max_length, return_tensors="pt"
        )
        names = [name for name in self.tokenizer.model_input_names if self.masked or name != "attention_mask"]
        return {name: tokens[name] for name in names if name in tokens}

    def cut(self, captions: list[str]) -> int:
        """How many of these captions have more tokens than the text encoder is given of them."""
        whole = self.tokenizer(captions, truncation=False, verbose=False)["input_ids"]
        return sum(len(tokens) > self.max_length for tokens in whole)

    def encode(self, rows: Mapping[str, list[object]]) -> Encoded:
        """`pixels [n, 3, H, W]` uint8, `caption_counts [n]`, and per tokenizer output `[n, captions, max_length]`."""
        captions = _caption_lists(rows["captions"])
        width = max(map(len, captions))
        tokens = self.tokenise([texts[i % len(texts)] for texts in captions for i in range(width)])
        return {
            "pixels": self._resize(rows["image"]),
            "caption_counts": torch.tensor([len(texts) for texts in captions]),
            **{name: value.view(len(captions), width, -1).int() for name, value in tokens.items()},
        }

    def batch(self, encoded: Encoded, seed: int | None) -> dict[str, Tensor]:
        """`pixel_values` and token tensors of one caption an image: drawn with a seed, the first one without."""
        return self.pairs(encoded, *self.draw(encoded["caption_counts"], seed))

    def pairs(self, encoded: Encoded, chosen: Tensor, mirrored: Tensor | None) -> dict[str, Tensor]:
        """The same of a draw that has been made."""
        pixels = encoded["pixels"]
        if mirrored is not None:
            pixels = torch.where(mirrored.view(-1, 1, 1, 1), pixels.flip(-1), pixels)
        tokens = {name: encoded[name] for name in self.token_names(encoded)}
        place = chosen.view(-1, 1, 1).expand(-1, 1, self.max_length)
        drawn = {name: value.gather(1, place)[:, 0].long() for name, value in tokens.items()}
        return {"pixel_values": self.normalise(pixels), **drawn}

    def draw(self, counts: Tensor, seed: int | None) -> tuple[Tensor, Tensor | None]:
        """Which of its captions each picture is paired with (`[n]`), and which are mirrored (`[n]` bool, if any).

        Args:
            counts: `[n]` captions of each picture.
            seed: of the draw; None takes first captions and mirrors nothing.
        """
        if seed is None:
            return torch.zeros_like(counts), None
        generator = torch.Generator(counts.device).manual_seed(seed)
        draws = torch.rand(2, len(counts), generator=generator, device=counts.device)
        return (draws[0] * counts).long(), draws[1] < self.flip_probability if self.flip_probability else None

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


class ImageViewPreprocessor(ContrastivePreprocessor):
    """Two augmented views of each image for SimCLR and MoCo.

    Args:
        image_processor: the model's image processor; it fixes the size at which pictures are kept.
        views: how a view is drawn; its size and normalisation are taken from the image processor.
    """

    def __init__(self, image_processor: Processor, views: ViewConfig) -> None:
        super().__init__(image_processor)
        self.views = BatchedViews(views.matching(image_processor))

    def compiled(self, compiler: Compiler) -> Self:
        """The same inputs with compiled views."""
        inputs = copy(self)
        inputs.views = self.views.compiled(compiler)
        return inputs

    def encode(self, rows: Mapping[str, list[object]]) -> Encoded:
        """`pixels [n, 3, H, W]` uint8."""
        return {"pixels": self._resize(rows["image"])}

    def batch(self, encoded: Encoded, seed: int | None) -> dict[str, Tensor]:
        """`pixel_values [n, 2, 3, H, W]`: two independent views, or twice the plain picture without a seed."""
        pixels = encoded["pixels"]
        if seed is None:
            return {"pixel_values": self.normalise(pixels).unsqueeze(1).expand(-1, 2, -1, -1, -1)}
        return {"pixel_values": self.views(pixels, seed=seed)}


def _picture(stored: object, place: int) -> PILImage.Image:
    """The upright RGB picture of a row, which a stream may have decoded already."""
    try:
        if isinstance(stored, PILImage.Image):
            check_size(*stored.size)
            return to_rgb(stored)
        if isinstance(stored, Mapping) and {"bytes", "path"} <= stored.keys():
            return read_image(stored)
    except UserError as error:
        raise RowError("image", place, f"{error}; mend it, or leave the row out") from error
    except (OSError, ValueError) as error:  # a picture that Pillow has opened but not read yet, or of another mode
        raise RowError("image", place, f"it cannot be read ({error}); mend it, or leave the row out") from error
    if stored is None:
        raise RowError("image", place, "there is no image; give it one, or leave the row out")
    raise RowError(
        "image", place, f'it holds {type(stored).__name__}, no picture; use cast_column("image", datasets.Image())'
    )


def _caption_lists(column: Sequence[Any]) -> list[Sequence[str]]:
    """The captions of every row; one on its own is a list of one."""
    lists = [[texts] if isinstance(texts, str) else texts for texts in column]
    for place, texts in enumerate(lists):
        if not (isinstance(texts, list | tuple) and texts and all(isinstance(text, str) for text in texts)):
            raise RowError(
                "captions",
                place,
                f"{shortened(texts)} is neither a caption nor a list of captions; give it one, or leave the row out",
            )
    return lists
