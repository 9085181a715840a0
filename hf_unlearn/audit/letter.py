"""A letter that a data owner can send: what was found, with its figures, and what to ask for, in neutral words.

It asks and accuses nobody. What law gives an owner differs from place to place; the letter names none.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable

from hf_unlearn.audit.headlines import SUSPICIOUS
from hf_unlearn.parsing import Fields
from hf_unlearn.records.audit_result import AuditResult, Verdict

WIDTH = 90
ASKED = {
    Verdict.NO_MODEL_CHANGE: (
        "which model my request was carried out on, when, and access to that model for the same audit",
        "the method that was used to remove these images, and its record",
    ),
    Verdict.NO_TARGETED_CHANGE: (
        "what was done about the requested images in particular, beyond the update that all images show",
        "the method that was used, and its record",
    ),
    Verdict.RESIDUAL_SIGNAL: (
        "the method that was used to remove these images, and its record",
        "the removal of what is left, and access to the result for the same audit",
    ),
    Verdict.RESIDUAL_UNDETERMINED: (
        "the method that was used to remove these images, and its record",
        "whether answers about my images pass through anything else than the model",
    ),
    Verdict.WITHIN_BAND: (
        "confirmation of the method that was used to remove these images, and its record",
        "whether copies of the images, or other models trained on them, are kept",
    ),
    Verdict.OVERSHOOT: (
        "the method that was used to remove these images, and its record",
        "a removal after which these images cannot be singled out",
    ),
    Verdict.INCONCLUSIVE: (
        "whether and how these images were removed from the model, and the record of it",
        "access that lets me audit with more images",
    ),
}


def letter(results: Iterable[AuditResult], measurement: Fields) -> str:
    """Write the letter of one or several owners, from their results and how it was measured.

    Returns:
        Plain text of at most 90 columns; places to fill in stand in brackets.
    """
    before, after = (_name(measurement["encoders"][side]) for side in ("before", "after"))
    parts = ["[Your name and address]", "", "[The model owner's name and address]", "", "[Date]", ""]
    parts += ["Request for information on the removal of images from a model", ""]
    parts += _wrapped(
        f"I compared the model before ({before}) and after ({after}) on images of mine, from "
        f"{measurement['started'][:10]} to {measurement['finished'][:10]}. The comparison asks both models the same "
        "questions and nothing else."
    )
    for result in results:
        sizes = ", ".join(f"{arm.size} {arm.arm.value.replace('_', ' ')}" for arm in result.arms)
        owner = f"Owner {result.owner}. " if result.owner else ""
        parts += ["", *_wrapped(f"{owner}{result.headline}"), "", *_wrapped(result.explanation), ""]
        parts += _wrapped(f"Images that count: {sizes}. Verdict as printed: {result.verdict.value}.")
        parts += [line for sentence in result.findings for line in _wrapped(f"- {sentence}")]
        parts += ["", *_wrapped(result.footer), "", "I ask for:"]
        # Where the change is not to be credited: what stands between the model and its answers.
        asked = ASKED[Verdict.RESIDUAL_UNDETERMINED if result.headline == SUSPICIOUS else result.verdict]
        parts += [line for sentence in asked for line in _wrapped(f"- {sentence};")]
    parts += [
        "",
        *_wrapped("The record of the audit (audit.json), its report and their hashes (SHA256SUMS) are enclosed."),
    ]
    parts += ["", "[Signature]", ""]
    return "\n".join(parts)


def _name(source: Fields) -> str:
    return str(source.get("name") or source.get("file") or "embeddings in a file")


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, subsequent_indent="  " if text.startswith("- ") else "")
