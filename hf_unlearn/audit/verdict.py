"""The audit's main entry: from the per-image table to a verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hf_unlearn.audit.results import Arm, AuditResult, ImageRow

FOOTER = (
    "At most this is consistent with removal. No black-box test can establish it: the same weights can arise from other "
    "data (Thudi et al., arXiv 2110.11891), and a model owner who knows the requested images could fake a local change."
)


def run_tests(
    images: Sequence[ImageRow],
    *,
    plan_sha256: str | None = None,
    provenance: Mapping[Arm, str] | None = None,
    problems: Sequence[str] = (),
    level: float = 0.05,
    permutations: int = 9_999,
    seed: int = 0,
) -> AuditResult:
    """Audit one owner: run T0 to T4 on the per-image table and give the verdict.

    Args:
        images: every image of every arm, one owner's.
        plan_sha256: hash of the committed plan that `plan.check_plan` found the arms to follow, if there is one.
        provenance: where each arm's images come from, in the owner's words.
        problems: faults of the measurement in plain words ("the encoder after answers 512 numbers, before 768"); any
            one makes the verdict INCONCLUSIVE.
        level: level of the tests.
        permutations: Monte-Carlo draws where a full enumeration would exceed 20,000.
        seed: seed of those draws.

    Returns:
        The tests, effects, minimum detectable effects and the verdict.
    """
    raise NotImplementedError


def run_tests_by_owner(
    images: Sequence[ImageRow],
    *,
    plan_sha256: str | None = None,
    provenance: Mapping[Arm, str] | None = None,
    problems: Sequence[str] = (),
    level: float = 0.05,
    permutations: int = 9_999,
    seed: int = 0,
) -> dict[str, AuditResult]:
    """Audit every owner in the table, with Benjamini-Yekutieli over owners; control rows without an owner serve all."""
    raise NotImplementedError
