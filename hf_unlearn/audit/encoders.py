"""Encoders as black boxes: pictures and texts in, embeddings out, whatever stands behind."""

import logging
import time
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from hf_unlearn.audit.embeddings import Array, Embeddings
from hf_unlearn.audit.endpoint import EndpointEncoder
from hf_unlearn.audit.pictures import Picture
from hf_unlearn.audit.transforms import ViewFamily, Views, draw_nudges, draw_views
from hf_unlearn.distributed import map_across_processes
from hf_unlearn.errors import UserError, first_line, no_such_model
from hf_unlearn.files import refuse_revision
from hf_unlearn.models.weights import ADAPTER_CONFIG_NAME, weights_sha256
from hf_unlearn.parsing import Fields

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

Features = Literal["projection", "backbone"]
Backend = Literal["torchvision", "pil"]
WANTED_FILES = ["*.json", "*.safetensors", "*.txt", "*.model"]  # never pickles, never code
CHUNK = 16  # pictures whose views are held in memory at once


class LocalEncoder:
    """A checkpoint of this library's families or any CLIP-like model, from a folder or the Hub.

    Args:
        name: A folder written by `save_pretrained`, or a Hub id, optionally `id@revision`.
        features: For SimCLR and MoCo, `projection` (where alignment is trained) or `backbone` (what users receive).
        backend: Image processor's backend, `torchvision` or `pil`; they differ, so both encoders must share it.
        device: Where to compute; the accelerator, if there is one, by default.
        batch_size: Pictures or texts a forward pass.
        anonymous: Whether the Hub is asked as anybody could, without the token logged in with; adapters, whose base
            model would be looked up too, are then refused.
        cache: Folder that a Hub model is fetched into; the Hub's own cache by default.
        deadline: When embedding ends, as `time.monotonic` counts; never by default.

    Raises:
        UserError: When nothing usable is found under the name, or the device cannot be used.
    """

    def __init__(
        self,
        name: str,
        *,
        features: Features = "projection",
        backend: Backend = "torchvision",
        device: str | None = None,
        batch_size: int = 64,
        anonymous: bool = False,
        cache: Path | None = None,
        deadline: float | None = None,
    ) -> None:
        from hf_unlearn.models.loading import load_image_processor, load_model
        from hf_unlearn.models.processor_fit import check_pictures

        self.name, self.features, self.backend, self.batch_size = name, features, backend, batch_size
        self.device, self.deadline = usable_device(device), deadline
        self.folder, self.revision = resolve_folder(name, anonymous=anonymous, cache=cache)
        if anonymous and (self.folder / ADAPTER_CONFIG_NAME).is_file():
            raise UserError(
                f"The model '{name}' is an adapter, whose base model is not looked up here; merge it first."
            )
        try:
            self.model: Any = load_model(str(self.folder))
            self.image_processor = load_image_processor(str(self.folder), backend)
        except UserError as error:
            raise UserError(f"The model '{name}' cannot be loaded: {error}") from error
        if not hasattr(self.model, "get_image_features"):
            raise UserError(
                f"The model '{name}' is a {type(self.model).__name__}, which has no get_image_features; "
                "give a CLIP-like, SimCLR or MoCo model, an endpoint, or a file of embeddings."
            )
        self.model.eval().to(self.device)
        check_pictures(self.model, self.image_processor, name)

    @property
    def view_side(self) -> int:
        """Side of the pictures that the image processor produces."""
        processor = self.image_processor
        # A processor that does not crop still names a crop size, its family's default.
        size = processor.crop_size if getattr(processor, "do_center_crop", False) else processor.size
        return int(size["height"] if "height" in size else size["shortest_edge"])

    @property
    def deterministic(self) -> bool:
        """True on a CPU; an accelerator may pick another kernel, and other last digits, for a batch of another size."""
        return self.device == "cpu"

    @property
    def choices(self) -> dict[str, str]:
        """What was chosen of how it answers, and must be the same on both sides: the backend, and which features."""
        chosen: dict[str, str] = {"processor_backend": self.backend}
        return chosen | ({"features": self.features} if hasattr(self.model, "get_projected_features") else {})

    @cached_property
    def _tokenizer(self) -> "PreTrainedTokenizerBase":
        from hf_unlearn.models.loading import load_tokenizer

        return load_tokenizer(self.model, str(self.folder), self.name)

    def embed_images(self, views: Views, *, repeat: int = 0) -> Array:
        """Embed pictures `[m, side, side, 3]` as `[m, d]`, through the checkpoint's own image processor."""
        return self._batched(views, self._image_batch)

    def embed_texts(self, texts: Sequence[str]) -> Array:
        """Embed texts as `[m, d]`, through the checkpoint's own tokenizer."""
        return self._batched(texts, self._text_batch)

    def _batched(self, items: Views | Sequence[str], embed: "Callable[..., Tensor]") -> Array:
        import torch

        parts: list[Tensor] = []
        with torch.inference_mode():
            for i in range(0, len(items), self.batch_size):
                if self.deadline is not None and time.monotonic() > self.deadline:
                    raise UserError("This takes longer than is allowed here; give fewer pictures or a smaller model.")
                parts.append(embed(items[i : i + self.batch_size]).float().cpu())
        return torch.cat(parts).numpy()

    def _image_batch(self, views: Views) -> "Tensor":
        from hf_unlearn.models.contrastive import embed_images

        # Pictures of one size go in as arrays; the processor resizes, crops and normalises as its checkpoint says.
        inputs = self.image_processor(list(views), input_data_format="channels_last", return_tensors="pt")
        pixels = inputs["pixel_values"].to(self.device)
        if self.features == "projection" and hasattr(self.model, "get_projected_features"):
            return self.model.get_projected_features(pixel_values=pixels)
        return embed_images(self.model, pixels)

    def _text_batch(self, texts: Sequence[str]) -> "Tensor":
        from hf_unlearn.models.contrastive import caption_length, embed_texts

        tokenizer = self._tokenizer
        length = caption_length(self.model, tokenizer)
        tokens = tokenizer(
            list(texts), padding="max_length", truncation=True, max_length=length, return_tensors="pt"
        ).to(self.device)
        return embed_texts(self.model, **tokens)

    def describe(self) -> Fields:
        """Name, revision, hash of the weights, architecture, which features, and the processor's settings."""
        described: dict[str, object] = {
            "kind": "checkpoint",
            "name": self.name if self.revision else Path(self.name).name,
            "revision": self.revision,
            "weights_sha256": weights_sha256(self.folder),
            "architecture": type(self.model).__name__,
            "processor": type(self.image_processor).__name__,
            "processor_size": self.view_side,
            "has_text": hasattr(self.model, "get_text_features"),
        }
        return described | self.choices


Encoder = LocalEncoder | EndpointEncoder


def embed_pictures(
    encoder: Encoder,
    pictures: Sequence[Picture],
    captions: Sequence[Sequence[str]],
    views: ViewFamily,
    held_back: ViewFamily,
    *,
    seed: int,
    count: int,
    skip: int = 0,
) -> Embeddings:
    """Ask an encoder about every picture: itself, views, held-back views, captions, one question twice, nudges.

    Pictures and their views are asked in a random order, so that no endpoint can tell an audit by its sequence, nor
    which picture a view is of by its neighbours. Several processes share the pictures out, in whole chunks, and each
    gets the answers to all.

    Args:
        encoder: The encoder.
        pictures: The pictures, n.
        captions: Each picture's captions; empty lists for an audit of views alone.
        views: The audit's own views.
        held_back: The family kept back for T4.
        seed: The audit's seed, the same for both encoders.
        count: Views a picture, k, the picture as it is among them.
        skip: How many of them were asked before and are left out now, with captions and repetitions.

    Returns:
        The embeddings, k - skip views a picture.

    Raises:
        UserError: When the encoder cannot answer.
    """
    texts = [text for group in captions for text in group] if not skip else []
    # Captions first: an encoder that takes none says so before the long part.
    text_embeddings = encoder.embed_texts(texts) if texts else None
    order = np.random.default_rng([seed, 1]).permutation(len(pictures))

    def ask(number: int) -> list[Array]:
        start = number * CHUNK
        chunk = [pictures[i] for i in order[start : start + CHUNK]]
        logger.info("Embedding pictures %d to %d of %d.", start + 1, start + len(chunk), len(pictures))
        own = draw_views(chunk, views, seed=seed, count=count, skip=skip, original_side=views.side)
        kinds = [own, draw_views(chunk, held_back, seed=seed + 1, count=count, skip=skip)]
        if skip:
            return _embed_mixed(encoder, kinds, seed)
        answered = _embed_mixed(encoder, [*kinds, draw_nudges(chunk, views.side, seed=seed + 2)], seed)
        again = answered[0][:, 0] if encoder.deterministic else encoder.embed_images(own[:, 0], repeat=1)
        return [*answered, again]

    answers = map_across_processes(-(-len(pictures) // CHUNK), ask)
    back = np.argsort(order)
    parts = [np.concatenate(part)[back] for part in zip(*answers, strict=True)]
    nudged, repeats = parts[2:] or (None, None)
    return Embeddings(
        images=parts[0],
        texts=text_embeddings,
        text_owner=np.array([i for i, group in enumerate(captions) for _ in group], dtype=np.int64) if texts else None,
        held_back=parts[1],
        repeats=repeats,
        nudged=nudged,
        original_first=True,
        source={**encoder.describe(), "dimension": int(parts[0].shape[-1])},
    )


def _embed_mixed(encoder: Encoder, kinds: Sequence[Views], seed: int) -> list[Array]:
    """Several `[n, k, side, side, 3]` of one side to `[n, k, d]` each, asked in one random order."""
    flat = [views.reshape(-1, *views.shape[2:]) for views in kinds]
    everything = np.concatenate(flat)
    order = np.random.default_rng([seed, 2]).permutation(len(everything))
    answered = encoder.embed_images(everything[order])[np.argsort(order)]
    ends = np.cumsum([len(part) for part in flat])[:-1]
    return [part.reshape(*views.shape[:2], -1) for part, views in zip(np.split(answered, ends), kinds, strict=True)]


def usable_device(device: str | None) -> str:
    """Check that a device is there, before anything is loaded for it; None is the accelerator, if there is one.

    Returns:
        The device's name.

    Raises:
        UserError: When there is no such device, or nothing can be computed on it.
    """
    import torch

    if device is None:
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return "cpu" if accelerator is None else accelerator.type
    try:
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError) as error:  # AssertionError: a torch that was built without it
        raise UserError(
            f"The device '{device}' cannot be used ({first_line(error)}); give cpu, or leave it out."
        ) from error
    return device


def resolve_folder(name: str, *, anonymous: bool = False, cache: Path | None = None) -> tuple[Path, str | None]:
    """Find a checkpoint's folder; a Hub id is fetched without pickles and code.

    Args:
        name: A folder, or a Hub id, optionally `id@revision`.
        anonymous: Whether the Hub is asked without the token logged in with.
        cache: Folder that is fetched into; the Hub's own cache by default.

    Returns:
        The folder, and the commit for a Hub id (None for a folder of the user's).

    Raises:
        UserError: When neither a folder nor a repository goes by that name.
    """
    from huggingface_hub import model_info, snapshot_download
    from huggingface_hub.errors import HFValidationError, HTTPError

    if Path(name).is_dir():
        return Path(name), None
    repository, _, given = name.partition("@")
    revision = given or None
    refuse_revision(repository, revision)
    try:
        token = False if anonymous else None
        if anonymous:  # the cache may hold what was fetched with a token
            revision = model_info(repository, revision=revision, token=token).sha
        fetched = snapshot_download(
            repository, revision=revision, allow_patterns=WANTED_FILES, token=token, cache_dir=cache
        )
        folder = Path(fetched)
    except HFValidationError as error:
        raise no_such_model(name) from error
    except (HTTPError, OSError) as error:
        raise UserError(f"The model '{name}' cannot be fetched: {first_line(error)}") from error
    return folder, folder.name
