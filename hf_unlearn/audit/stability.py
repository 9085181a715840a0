"""How much of a verdict is chance of the views: redraw them and see how often it stays the same.

A random half of each picture's views deviates from all of them about as much as all of them do from the encoder's true
mean, so verdicts on halves vary as verdicts on other draws of the views would.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

import numpy as np

from hf_unlearn.audit.embeddings import Embeddings
from hf_unlearn.records.audit_result import AuditResult, Verdict

DRAWS = 20
ENOUGH = 0.9
"""Share of redraws that must agree; below it more views are asked for."""
LONG = 1_000  # pictures from which fewer redraws are made
FEW_DRAWS = 6


def verdict_stability(
    sides: Mapping[str, Embeddings],
    judge: Callable[[Embeddings, Embeddings], Mapping[str, AuditResult]],
    verdicts: Mapping[str, Verdict],
    *,
    seed: int,
) -> dict[str, float]:
    """Share of redraws of the views that give each owner the same verdict.

    Args:
        sides: Both encoders' answers, `before` and `after`.
        judge: From such answers to one result an owner.
        verdicts: Owner to the verdict on all views.
        seed: Seed of the redraws.

    Returns:
        Owner to share; empty where there are too few views to halve, or the sides have different ones.
    """
    before, after = sides["before"], sides["after"]
    if before.images.shape[1] != after.images.shape[1]:
        return {}
    draws = DRAWS if len(before.images) < LONG else FEW_DRAWS
    agreed: Counter[str] = Counter()
    for number in range(draws):
        # The same half of both: they were shown the same views.
        first, second = (side.half(np.random.default_rng([seed, number])) for side in (before, after))
        if first is None or second is None:
            return {}
        agreed.update(owner for owner, result in judge(first, second).items() if result.verdict is verdicts[owner])
    return {owner: agreed[owner] / draws for owner in verdicts}
