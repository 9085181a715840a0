"""What is said once of the data, for every method that is trained on it: how rows are read and encoded."""

from collections.abc import Collection
from dataclasses import dataclass, field, fields
from math import inf
from typing import TypeVar, cast

from hf_unlearn.data.encoded import RESIDENT_BYTES
from hf_unlearn.data.streaming import SHUFFLE_BUFFER
from hf_unlearn.data.views import VIEW_PRESETS
from hf_unlearn.errors import UserError, check_ranges

T = TypeVar("T")
# How rows are read for one kind of model, and not for the other.
_OF_PAIRS, _OF_VIEWS = ("max_length", "flip_probability"), ("views",)
_OF_STREAMS = ("retain_rows", "shuffle_buffer")
_RANGES = (
    ("max_length", 1, inf), ("flip_probability", 0, 1), ("resident_bytes", 0, inf), ("retain_rows", 1, inf),
    ("shuffle_buffer", 1, inf),
)  # fmt: skip


def setting(default: T, told: str) -> T:
    """A field of a config: its default, and what `--help` says of it."""
    return cast("T", field(default=default, metadata={"help": told}))


@dataclass
class DataConfig:
    """How rows are read and encoded.

    Raises:
        UserError: when a value is out of range.
    """

    views: str = setting("cifar", f"Preset of random views for SimCLR and MoCo: {', '.join(VIEW_PRESETS)}.")
    max_length: int | None = setting(
        None, "Tokens a caption is padded and cut to; default: what the text encoder and its tokenizer take."
    )
    flip_probability: float = setting(0.0, "Chance of mirroring a picture in image-text training (paper, COCO: 0.5).")
    retain_rows: int | None = setting(
        None, "Rows of a streaming retain that a Trainer is given; default: what its info says."
    )
    shuffle_buffer: int | None = setting(
        None, f"Rows of a streaming retain among which the next is drawn; default: {SHUFFLE_BUFFER:,}."
    )
    resident_bytes: int = setting(
        RESIDENT_BYTES,
        "Encoded splits of up to so many bytes are decoded once, into memory (an accelerator's if it has room); "
        f"default: {RESIDENT_BYTES / 2**30:g} GiB.",
    )

    def __post_init__(self) -> None:
        if self.views not in VIEW_PRESETS:
            raise UserError(f"views={self.views!r} is unknown; choose one of {', '.join(VIEW_PRESETS)}")
        check_ranges(self, _RANGES)

    def idle(self, pairs: bool) -> tuple[str, ...]:
        """Fields without effect on a model that embeds pairs of pictures and texts, or else views."""
        return _OF_VIEWS if pairs else _OF_PAIRS

    def refuse_idle(self, pairs: bool) -> None:
        """Refuse a value other than the default of fields without effect on such a model."""
        kind = "pairs of pictures and texts" if pairs else "views"
        self._refuse_set(self.idle(pairs), f"on a model that embeds {kind}")

    def refuse_of_streams(self, is_stream: bool, counted: bool = False) -> None:
        """Refuse fields of a retain stream where retain is none, and a number of rows where it says its own."""
        if not is_stream:
            self._refuse_set(_OF_STREAMS, "where retain is no stream")
        elif counted:
            self._refuse_set(("retain_rows",), "on a stream that says itself how many rows it has")

    def _refuse_set(self, names: Collection[str], where: str) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if each.name in names and value != each.default:
                raise UserError(f"{each.name}={value} would have no effect {where}; leave it unset")
