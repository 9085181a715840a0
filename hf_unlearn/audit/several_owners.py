"""Several owners audited together: adjusted in the direction that keeps the promise for each of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import ceil

from hf_unlearn.audit.hypotheses import HypothesisTests
from hf_unlearn.audit.levels import RESIDUAL_LEVEL, SHARE_LEVEL
from hf_unlearn.audit.power import level_of_one
from hf_unlearn.audit.statistics import benjamini_yekutieli
from hf_unlearn.records.audit_result import TestResult

ADJUSTED = frozenset({"T1", "T2", "T2.bound", "T2.share", "T3.equivalence", "T4.T2", "T4.T3.equivalence"})
"""Tests whose rejection credits or accuses, which several owners make harder. The others bar the best verdict when they
reject, which protects each owner; adjusting them would let a faker hide among honest ones."""


def multiplicity(owners: int) -> str:
    """The rule in words."""
    if owners == 1:
        return "one owner: p-values are not adjusted"
    return (
        f"Benjamini-Yekutieli over {owners} owners for each test that credits or accuses; tests that protect an owner "
        "are not adjusted"
    )


def enough_permutations(permutations: int, level: float, audits: int, owners: int) -> int:
    """Draws with which one owner's p-value can pass every test although no other owner's does."""
    if owners == audits == 1:
        return permutations
    smallest = min(level_of_one(min(level, SHARE_LEVEL), owners), RESIDUAL_LEVEL)
    return max(permutations, ceil(audits / smallest))


def adjusted(measured: Mapping[str, HypothesisTests]) -> dict[str, HypothesisTests]:
    """Replace each test that credits or accuses by itself, its p-value adjusted over the owners that have it."""
    tests_of: dict[str, dict[str, TestResult]] = {owner: dict(found.tests) for owner, found in measured.items()}
    for name in sorted(ADJUSTED):
        family = {owner: test for owner, tests in tests_of.items() if (test := tests.get(name)) and test.p_value}
        if not family:
            continue
        p_values = benjamini_yekutieli([test.p_value or 1.0 for test in family.values()])
        for (owner, test), p_value in zip(family.items(), p_values.tolist(), strict=True):
            tests_of[owner][name] = replace(test, p_adjusted=p_value, passed=p_value <= test.level)
    return {owner: replace(found, tests=tests_of[owner]) for owner, found in measured.items()}
