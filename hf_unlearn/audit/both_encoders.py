"""Both encoders asked the same: opened, checked to be asked one question, and measured."""

import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from hf_unlearn.audit.audited_pictures import AuditedPictures
from hf_unlearn.audit.embedding_files import captions_sha256, is_precomputed, read_embeddings
from hf_unlearn.audit.embeddings import Embeddings
from hf_unlearn.audit.encoders import Encoder, LocalEncoder, embed_pictures
from hf_unlearn.audit.endpoint import EndpointEncoder
from hf_unlearn.audit.endpoint_address import check_endpoint, is_endpoint
from hf_unlearn.audit.endpoint_cache import EmbeddingCache
from hf_unlearn.audit.settings import AuditSettings, keep_seed
from hf_unlearn.audit.transforms import HeldBackViews, TrainingViews, ViewFamily
from hf_unlearn.distributed import map_across_processes, world_size
from hf_unlearn.errors import UserError
from hf_unlearn.records.provenance import environment_versions

logger = logging.getLogger(__name__)

VIEW_SIDE = 224  # for encoders that do not say what they were made for
CACHE_FILE = "answers.sqlite"
_QUESTION = {  # what both sides must have in common, as a recording notes it, and how a message calls it
    "views": "views",
    "seed": "seed",
    "count": "view count",
    "original_first": "picture as it is among the views",
    "captions_sha256": "captions",
    "features": "features",
    "processor_backend": "image processors' backend",
}
LIBRARIES = ("hf-unlearn", "torch", "torchvision", "transformers", "numpy", "scipy", "pillow")


@dataclass
class BothEncoders:
    """Both encoders and what they answered so far.

    Args:
        sides: Side to embeddings, of all pictures and then the decoys.
        encoders: Side to encoder, where there is one that can be asked for more.
        families: The two families of views; None where all embeddings came from files.
        settings: How it is measured, nothing left open.
        pictures: The pictures; decoys are asked about after them.
        started: When measuring began (UTC).
    """

    sides: dict[str, Embeddings]
    encoders: dict[str, Encoder]
    families: tuple[ViewFamily, ViewFamily] | None
    settings: AuditSettings
    pictures: AuditedPictures
    started: str

    @property
    def can_grow(self) -> bool:
        """Whether more views can be asked for on both sides."""
        count = self.settings.view_count or 0
        return len(self.encoders) == 2 and 2 * count <= self.settings.most_views

    def grow(self) -> None:
        """Ask both encoders about as many views again."""
        assert self.settings.view_count is not None
        count = 2 * self.settings.view_count
        logger.info("The verdict hangs on which views were drawn; going on to %d a picture.", count)
        for side, encoder in self.encoders.items():
            first, more = self.sides[side], self._ask(encoder, count, skip=self.settings.view_count)
            assert first.held_back is not None and more.held_back is not None
            self.sides[side] = replace(
                first,
                images=np.concatenate([first.images, more.images], axis=1),
                held_back=np.concatenate([first.held_back, more.held_back], axis=1),
                source=more.source,
            )
        self.settings = replace(self.settings, view_count=count)

    def _ask(self, encoder: Encoder, count: int, skip: int = 0) -> Embeddings:
        assert self.families is not None and self.settings.seed is not None
        views, held_back = self.families
        return embed_pictures(
            encoder,
            (*self.pictures.pictures, *self.pictures.decoys),
            (*self.pictures.captions, *[()] * len(self.pictures.decoys)),
            views,
            held_back,
            seed=self.settings.seed,
            count=count,
            skip=skip,
        )

    def describe(self) -> dict[str, object]:
        """Everything needed to repeat the measurement."""
        how: dict[str, object] = {"views": "precomputed", "held_back_views": None}
        if self.families is not None:
            how = {"views": self.families[0].describe(), "held_back_views": self.families[1].describe()}
        local = [encoder for encoder in self.encoders.values() if isinstance(encoder, LocalEncoder)]
        captioned = self.sides["before"].texts is not None or any(self.pictures.captions)
        return {
            "started": self.started,
            "finished": _now(),
            "family": "image-text" if captioned else "views",
            "view_count": self.sides["before"].images.shape[1],
            "original_first": self.sides["before"].original_first,
            **how,
            "seed": self.settings.seed,
            "audits": self.settings.audits,
            "decoys": len(self.pictures.decoys),
            "captions_sha256": captions_sha256(self.pictures.captions) if any(self.pictures.captions) else None,
            "processor_backend": self.settings.backend if local else None,
            "device": next((encoder.device for encoder in local), None),
            "encoders": {side: dict(embeddings.source) for side, embeddings in self.sides.items()},
            "versions": environment_versions(LIBRARIES),
        }


def embed_both(
    before: str,
    after: str,
    pictures: AuditedPictures,
    settings: AuditSettings,
    folder: Path,
    stack: ExitStack,
    seed: int | None = None,
) -> BothEncoders:
    """Open both encoders, then ask both the same; a wrong name fails before anything long begins.

    The views are those of `settings.seed`, else of a recording, else of `seed`, else they are drawn anew. A seed drawn
    anew is written into the folder first, so that the same command goes on with the same views.

    Raises:
        UserError: When one cannot be opened or asked, or was recorded with another question, or decoys are given and
            neither is asked.
    """
    started, asked = _now(), settings
    opened: dict[str, Embeddings | Encoder] = {}
    if pictures.decoys and is_precomputed(before) and is_precomputed(after):
        raise UserError(
            "Decoys (--decoys) would have no effect: both sides are files of embeddings, which hold no answers about "
            "them, and nothing is asked; leave them out."
        )
    for side, name in (("before", before), ("after", after)):
        if is_precomputed(name):
            opened[side] = read_embeddings(name, pictures.pictures, pictures.captions)
            settings = settings.with_recorded(opened[side].source)  # type: ignore[union-attr]
    if settings.seed is None:
        settings = replace(settings, seed=seed)
    settings = map_across_processes(1, lambda _: settings.with_defaults())[0]  # one draw of the seed for all processes
    for side, name in (("before", before), ("after", after)):
        if side not in opened:
            opened[side] = open_encoder(name, side, folder / CACHE_FILE, settings, stack)
    encoders = {side: found for side, found in opened.items() if not isinstance(found, Embeddings)}
    families = view_families(settings, list(encoders.values()), bool(pictures.captions[0])) if encoders else None
    if len(encoders) < 2 and pictures.decoys:
        pictures = replace(pictures, decoys=())  # a file has no answers about them
    both = BothEncoders({}, encoders, families, settings, pictures, started)
    _check_same_question(
        {
            side: {**found.source.get("drawn", {}), **{n: found.source[n] for n in _QUESTION if n in found.source}}
            if isinstance(found, Embeddings)  # which says nothing where it is another's
            else {
                **({} if families is None else how_drawn(families[0], settings)),
                "captions_sha256": captions_sha256(pictures.captions),
                **(found.choices if isinstance(found, LocalEncoder) else {}),  # an endpoint leaves no choice
            }
            for side, found in opened.items()
        }
    )
    drawn = asked.seed is None and seed is None
    if drawn and any(isinstance(encoder, EndpointEncoder) for encoder in encoders.values()):
        keep_seed(folder, settings.seed or 0)
    for side in ("before", "after"):
        found = opened[side]
        if isinstance(found, Embeddings):
            both.sides[side] = found
        else:
            logger.info("Measuring the model %s.", side)
            both.sides[side] = both._ask(found, settings.view_count or 0)
    return both


def open_encoder(name: str, side: str, cache: Path, settings: AuditSettings, stack: ExitStack) -> Encoder:
    """Open a checkpoint or an endpoint."""
    if is_endpoint(name):
        if world_size() > 1:
            raise UserError(f"The endpoint of the model {side} is asked by a single process; launch the audit as one.")
        check_endpoint(name, side)  # before a file is made for its answers
        return EndpointEncoder(name, side, stack.enter_context(EmbeddingCache(cache)), settings.endpoint)
    return LocalEncoder(
        name,
        features=settings.features or "projection",
        backend=settings.backend or "torchvision",
        device=settings.device,
        anonymous=settings.anonymous,
        cache=settings.model_cache,
        deadline=settings.deadline,
    )


def view_families(
    settings: AuditSettings, encoders: Sequence[Encoder], captioned: bool
) -> tuple[TrainingViews, HeldBackViews]:
    """The audit's own views and the held-back ones, at the side that the encoders were made for."""
    preset = settings.views or ("caption" if captioned else "cifar")
    side = settings.view_side or max((encoder.view_side or 0 for encoder in encoders), default=0) or VIEW_SIDE
    return TrainingViews(preset, side), HeldBackViews(side)


def how_drawn(views: ViewFamily, settings: AuditSettings) -> dict[str, object]:
    """How views are drawn, as JSON gives it back."""
    drawn = {"views": views.describe(), "seed": settings.seed, "count": settings.view_count, "original_first": True}
    return json.loads(json.dumps(drawn))


def _check_same_question(asked: Mapping[str, Mapping[str, object]]) -> None:
    """Refuse to compare a recording with what is measured, or was recorded, otherwise."""
    before, after = asked["before"], asked["after"]
    if other := [name for name in _QUESTION if name in before and name in after and before[name] != after[name]]:
        told = [name for name in other if name != "seed"]  # which is a secret until the report
        recorded = {side: json.dumps({name: question[name] for name in told}) for side, question in asked.items()}
        values = f": before {recorded['before']}, after {recorded['after']}" if told else ""
        seed = " (audit record --seed, with the number that the first recording holds)" if "seed" in other else ""
        raise UserError(
            f"A model was recorded with another question than the other is asked{values}; use the same "
            f"{', '.join(_QUESTION[name] for name in other)} for both{seed}."
        )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
