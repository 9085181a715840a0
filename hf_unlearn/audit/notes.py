"""Remarks on a measurement that forbid no verdict by themselves, and what would make the next one stronger."""

from collections.abc import Mapping

from hf_unlearn.audit.audited_pictures import AuditedPictures
from hf_unlearn.audit.embeddings import Embeddings
from hf_unlearn.audit.endpoint_address import is_endpoint


def notes(
    measured: Mapping[str, Embeddings], pictures: AuditedPictures, before_name: str, after_name: str
) -> tuple[str, ...]:
    """What a reader should know about the measurement, a sentence each.

    Args:
        measured: Both encoders' answers.
        pictures: The pictures.
        before_name: What the owner gave for the encoder before.
        after_name: What the owner gave for the one after.
    """
    found = [note for side, e in measured.items() for note in e.faults(f"The model {side}", pictures.names)]
    if before_name == after_name:
        kind = (
            "one address, so unless its model was exchanged in between both sides are the same model; record its "
            "answers before the change (hf-unlearn audit record)"
            if is_endpoint(before_name)
            else "one model, so nothing can have changed"
        )
        found.append(f"Before and after are {kind}.")
    left, right = (measured[side].images.shape[2] for side in ("before", "after"))
    if left != right:
        found.append(
            f"The model before gives {left} numbers a picture, the model after {right}; cosines are compared all "
            "the same."
        )
    precomputed = [side for side, e in measured.items() if e.source.get("kind") == "precomputed"]
    if foreign := [side for side in precomputed if not {"drawn", "captions_sha256"} <= set(measured[side].source)]:
        found.append(
            f"The embeddings {' and '.join(foreign)} were computed elsewhere; that both sides saw the same views and "
            "captions is taken on trust."
        )
    elif precomputed:
        found.append(
            f"The embeddings {' and '.join(precomputed)} were recorded earlier; by that record, both sides saw the "
            "same views and captions."
        )
    before, after = (measured[side].source for side in ("before", "after"))
    for key, what in (("processor", "image processors"), ("processor_size", "picture sizes")):
        if key in before and key in after and before[key] != after[key]:
            found.append(f"The two checkpoints bring different {what} ({before[key]}, {after[key]}).")
    if not any(pictures.captions) and before.get("has_text") is True:
        found.append(
            "The model also embeds texts, and captions were not given; a model trained on pairs remembers pictures "
            "with their captions, so an audit with --captions sees much more."
        )
    return tuple(found)
