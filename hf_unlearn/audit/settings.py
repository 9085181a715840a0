"""How two encoders are measured: what an owner may choose, what a recording has chosen already, and the secret seed."""

import json
import secrets
from dataclasses import dataclass, field, replace
from math import inf
from pathlib import Path
from typing import get_args

from hf_unlearn.audit.encoders import Backend, Features
from hf_unlearn.audit.endpoint import EndpointOptions
from hf_unlearn.errors import UserError
from hf_unlearn.files import write_atomically
from hf_unlearn.parsing import Fields, read_json

SEED_BITS = 128
SEED_FILE = "secret_seed.json"
"""Holds the seed of an unfinished audit, so that the same command goes on with the same views."""
VIEW_COUNT, MOST_VIEWS = 10, 40
LARGEST_SIDE, LARGEST_COUNT, LARGEST_AUDITS = 4_096, 1_000, 1_000
_KINDS = {
    **dict.fromkeys(("views", "features", "backend", "device"), str),
    **dict.fromkeys(("view_count", "most_views", "view_side", "seed", "audits"), int),
}
_RANGES = (  # the least and the greatest value, and how a message names them
    ("seed", 0, inf, "The seed must be a whole number of at least 0"),
    ("view_side", 1, LARGEST_SIDE, "A view needs a side of at least 1 pixel and at most {}"),
    ("view_count", 2, LARGEST_COUNT, "An audit needs at least 2 views a picture to compare, and at most {}"),
    ("audits", 1, LARGEST_AUDITS, "This audit is one of at least 1 and at most {}"),
)


@dataclass(frozen=True)
class AuditSettings:
    """How two encoders are measured; the same for both. What is None is taken from a recording, or by default.

    Args:
        views: A name in `transforms.training_views()`; by default `caption` with captions and `cifar` without.
        view_count: Views a picture, K, the picture as it is among them; 10 by default.
        most_views: Views a picture up to which more are drawn while the verdict hangs on which were drawn.
        view_side: Side of a view in pixels; by default the larger of the two encoders', else 224.
        features: For SimCLR and MoCo checkpoints, which output: `projection` (the default) or `backbone`.
        backend: Backend of both checkpoints' image processors, `torchvision` (the default) or `pil`.
        device: Where checkpoints compute; the accelerator, if there is one, by default.
        endpoint: Batch size and patience with endpoints.
        seed: Seed of the views and of Monte-Carlo permutations, at least 0. By default it is drawn at random and kept
            secret until the report is written: whoever knows it could answer the audited views only. Give one only to
            repeat a report.
        audits: How many audits of the same request are planned, this one included; they share the error.
        anonymous: Whether Hub models are fetched as anybody could, without the token logged in with.
        model_cache: Folder that Hub models are fetched into; the Hub's own cache by default.
        deadline: When embedding ends, as `time.monotonic` counts; never by default.

    Raises:
        UserError: When there are fewer than two views a picture, or a number is out of its range.
    """

    views: str | None = None
    view_count: int | None = None
    most_views: int = MOST_VIEWS
    view_side: int | None = None
    features: Features | None = None
    backend: Backend | None = None
    device: str | None = None
    endpoint: EndpointOptions = field(default_factory=EndpointOptions)
    seed: int | None = None
    audits: int = 1
    anonymous: bool = False
    model_cache: Path | None = None
    deadline: float | None = None

    def __post_init__(self) -> None:
        for name, kind in _KINDS.items():  # a recording or a report may have said it
            value = getattr(self, name)
            if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
                raise UserError(f"The {name} of an audit must be of type {kind.__name__}, not {repr(value)[:80]}.")
        for name, known in (("features", get_args(Features)), ("backend", get_args(Backend))):
            if getattr(self, name) not in (None, *known):
                raise UserError(f"The {name} of an audit are {' or '.join(known)}, not '{getattr(self, name)}'.")
        for name, least, most, words in _RANGES:
            value = getattr(self, name)
            if value is not None and not least <= value <= most:
                raise UserError(f"{words.format(most)}, not {value}.")

    def with_recorded(self, source: Fields) -> "AuditSettings":
        """Fill in what is not chosen from what a recording of this library says of itself."""
        drawn = source.get("drawn", {})
        views = drawn["views"] if isinstance(drawn.get("views"), dict) else {}  # a word where they came from a file
        recorded = {
            "views": views.get("family"),
            "view_side": views.get("size"),
            "view_count": drawn.get("count"),
            "seed": drawn.get("seed"),
            "features": source.get("features"),
            "backend": source.get("processor_backend"),
        }
        return replace(self, **{name: value for name, value in recorded.items() if getattr(self, name) is None})

    def with_defaults(self) -> "AuditSettings":
        """Fill in the defaults of what neither the owner nor a recording has chosen; the seed is drawn."""
        return replace(
            self,
            view_count=self.view_count or VIEW_COUNT,
            features=self.features or "projection",
            backend=self.backend or "torchvision",
            seed=secrets.randbits(SEED_BITS) if self.seed is None else self.seed,
        )


def unfinished_seed(folder: Path) -> int | None:
    """The seed of the audit that was interrupted in this folder, if there is one.

    Raises:
        UserError: When its file is damaged.
    """
    path = folder / SEED_FILE
    if not path.is_file():
        return None
    try:
        return int(read_json(path)["seed"])
    except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise UserError(f"'{path}' is damaged; delete it, and the audit starts anew with other views.") from error


def keep_seed(folder: Path, seed: int) -> None:
    """Write the seed of an audit that begins, for its owner's eyes only."""
    folder.mkdir(parents=True, exist_ok=True)
    path = write_atomically(folder / SEED_FILE, json.dumps({"seed": seed}) + "\n")
    path.chmod(0o600)
