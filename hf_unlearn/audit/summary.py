"""The audit of one owner as it is told in the terminal."""

import textwrap
from math import isfinite
from statistics import fmean

from hf_unlearn.records.audit_result import AuditResult

WIDTH = 80  # columns of wrapped text


def summary(result: AuditResult, owner: str = "") -> str:
    """The audit of one owner as it is told in the terminal.

    Args:
        result: The owner's result.
        owner: The owner's name, if there are several.

    Returns:
        A few lines: verdict, explanation, alignments by arm, and the footer.
    """
    lines = textwrap.wrap(f"{owner}: {result.headline}" if owner else result.headline, WIDTH)
    lines += ["", result.verdict.value, "", *textwrap.wrap(result.explanation, WIDTH), ""]
    lines += [line for sentence in result.findings for line in textwrap.wrap(f"! {sentence}", WIDTH)]
    lines += [""] if result.findings else []
    lines.append(f"{'':18}{'images':>7}{'before':>9}{'after':>9}{'forgetting score':>18}")
    for arm in result.arms:
        rows = [row for row in result.images if row.arm is arm.arm]
        known = [row for row in rows if isfinite(row.before) and isfinite(row.after)] or rows
        before, after = fmean(row.before for row in known), fmean(row.after for row in known)
        name = arm.arm.value.replace("_", " ")
        lines.append(f"{name:18}{arm.size:>7}{before:>9.4f}{after:>9.4f}{before - after:>+18.4f}")
    if result.stability is not None:
        lines += ["", f"{result.stability:.0%} of redraws of the views give this verdict."]
    lines += ["", *textwrap.wrap(result.footer, WIDTH), ""]
    return "\n".join(printable(line) for line in lines)


def printable(text: str) -> str:
    """Text without control characters, which names and answers from elsewhere may carry to a terminal."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)
