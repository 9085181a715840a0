"""Whether a finished model can be set beside others: how it reads rows, and what its record says it was made from."""

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from hf_unlearn.data.preprocessing import ContrastivePreprocessor
from hf_unlearn.errors import UserError, listed
from hf_unlearn.records.file_names import MANIFEST_NAME
from hf_unlearn.records.schemas import RequestRecord, UnlearningManifest

ROWS = 8  # that both processors prepare


def refuse_other_reading(
    name: str, own: ContrastivePreprocessor, base: ContrastivePreprocessor, unlearn: Dataset
) -> None:
    """Refuse a model that was made for other pictures or tokens than its base: rows are encoded by the base's alone.

    Args:
        name: what the model is called.
        own: its preprocessor.
        base: the base model's.
        unlearn: rows, of which both prepare some.

    Raises:
        UserError: naming what differs.
    """
    if type(own) is not type(base):
        kinds = ("pictures and texts" if hasattr(each, "tokenizer") else "views of pictures" for each in (own, base))
        raise UserError("{} embeds {}, and the base model {}; name its own base model".format(name, *kinds))
    if differing := other_reading(own, base, unlearn):
        raise UserError(
            f"{name} does not read rows as the base model does, so figures of the two cannot be compared "
            f"({listed(differing)}); name the base model that it was unlearned from, or save the processor that it was "
            "trained with beside it"
        )


def other_reading(own: ContrastivePreprocessor, base: ContrastivePreprocessor, unlearn: Dataset) -> list[str]:
    """What differs in the pictures or tokens that a model's preprocessor and its base's, of one kind, make of rows."""
    rows = unlearn[:ROWS]
    ours, theirs = own.encode(rows), base.encode(rows)
    found = _other_pictures(own, base, ours.pop("pixels"), theirs.pop("pixels"))
    return [*found, *_other_tokens(own, base, ours, theirs)]


def _other_pictures(own: Any, base: Any, ours: torch.Tensor, theirs: torch.Tensor) -> list[str]:
    """What differs in the pictures; the same processor's two backends round to neighbouring grey levels."""
    one, other = own.preparation, base.preparation
    if ours.shape != theirs.shape:
        sizes = f"{one.height} x {one.width} pixels, the base's of {other.height} x {other.width}"
        return [f"its image processor makes pictures of {sizes}"]
    found = [
        f"its image processor's {statistic} is {listed(values)}, the base's {listed(others)}"
        for statistic in ("mean", "std")
        if not torch.allclose(
            torch.tensor(values := getattr(one, statistic), dtype=torch.float64),  # a file may hold whole numbers
            torch.tensor(others := getattr(other, statistic), dtype=torch.float64),
            atol=1e-4,
        )
    ]
    resized = (ours.int() - theirs.int()).abs().max() > 1
    return [*found, "its image processor resizes or crops otherwise"] if resized else found


def _other_tokens(own: Any, base: Any, ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> list[str]:
    """What differs in the tokens; the words that the rows at hand lack are seen by the vocabularies."""
    if not hasattr(base, "tokenizer"):
        return []
    words, others = own.tokenizer.get_vocab(), base.tokenizer.get_vocab()
    if words != others:
        return [f"its tokenizer has other tokens ({len(words)}, the base's {len(others)}), or other numbers for them"]
    same = ours.keys() == theirs.keys() and all(torch.equal(ours[part], theirs[part]) for part in ours)
    return [] if same else ["its tokenizer makes other tokens of the same captions"]


def record_doubts(
    name_or_path: str | Path, base_sha256: str | None, request: RequestRecord, than: str
) -> tuple[str, ...]:
    """What a model's record says against setting it beside others: that it has another base model or request.

    Args:
        name_or_path: its folder; a model without a record, or on the Hub, is taken on trust.
        base_sha256: of the weights of the base model that it is compared with; None where that is not known.
        request: what the others have unlearned.
        than: who they are, for the sentence: "these Retrains have".
    """
    if not (Path(name_or_path) / MANIFEST_NAME).is_file():
        return ()
    record = UnlearningManifest.load(name_or_path)
    hashes = record.base_model.sha256, base_sha256
    same = {
        "base model": None in hashes or hashes[0] == hashes[1],
        # One with a salt cannot be compared with one without.
        "request": record.request.salted != request.salted or record.request.sha256 == request.sha256,
    }
    others = " and another ".join(what for what, holds in same.items() if not holds)
    return (f"Its record names another {others} than {than}: the figures tell little of it.",) if others else ()
