"""Longer simulations than every run of the tests has time for: `pytest -m simulation tests/audit/test_simulations.py`.

`tests/audit_sections.py` prints the same figures, and more of them, as a table.
"""

import numpy as np
import pytest
from audit.test_acceptance import DRIFT, assert_at_most
from audit_attacks import ATTACKS, verdicts
from audit_sections import ACCUSED, BEST, PART, scenes, several, uneven, world_rates
from audit_simulation import C, R, U, World

from hf_unlearn.records.audit_result import Arm

pytestmark = pytest.mark.simulation
OWNERS = 4_000


@pytest.mark.parametrize("name", ATTACKS)
def test_no_fake_gets_the_best_verdict_in_more_than_one_of_twenty(name: str) -> None:
    assert_at_most(verdicts(ATTACKS[name], 60)[BEST], 60, 0.05)


@pytest.mark.parametrize("count", [1, 10, 30])
def test_exact_retraining_is_not_wronged_among_many_owners(count: int) -> None:
    honest, _ = several(count, 600 // count, np.random.default_rng(count))
    assert_at_most(honest[ACCUSED], 600, 0.01)
    assert_at_most(honest[PART], 600, 0.01)


@pytest.mark.parametrize("n", [9, 20, 50])
def test_a_drift_is_not_credited_and_exact_retraining_is(n: int) -> None:
    rng = np.random.default_rng(n)
    sizes = {U: n, R: n, C: n}
    drifted = world_rates(World(sizes, gap=0.3, drift=DRIFT), OWNERS, rng)
    credit = sum(share for verdict, share in drifted.items() if verdict.value.startswith("TARGETED"))
    assert_at_most(round(OWNERS * credit), OWNERS, 0.05)
    assert_at_most(uneven(True, n, OWNERS, rng), OWNERS, 0.05)
    retrained = world_rates(World(sizes, gap=0.3, removed=1, drift=DRIFT), OWNERS, rng)
    for verdict in (ACCUSED, PART):
        assert_at_most(round(OWNERS * retrained[verdict]), OWNERS, 0.01)
    assert n < 20 or retrained[BEST] > 0.895


@pytest.mark.parametrize("gap", [0.1, 0.3])
@pytest.mark.parametrize("parted", [0.3, 1.0])
def test_twins_that_are_known_accuse_nobody(gap: float, parted: float) -> None:
    rates = scenes(20, 10, gap, 200, np.random.default_rng(0), known=True, parted=parted)
    assert rates[ACCUSED] == 0
    assert_at_most(rates[PART], 200, 0.01)


@pytest.mark.parametrize("sizes", [{U: 2, R: 20, C: 20}, {U: 6, R: 60, C: 60}, {U: 60, R: 6, C: 6}, {U: 20, C: 20}])
@pytest.mark.parametrize("name", ATTACKS)
def test_no_fake_gets_the_best_verdict_in_arms_of_unequal_size(sizes: dict[Arm, int], name: str) -> None:
    assert_at_most(verdicts(ATTACKS[name], 60, world=World(sizes, gap=0.3, removed=1))[BEST], 60, 0.05)


@pytest.mark.parametrize(
    "sizes", [{U: 6, R: 60, C: 60}, {U: 6, R: 600, C: 600}, {U: 200, R: 8, C: 8}, {U: 60, R: 60, C: 4}]
)
def test_exact_retraining_is_not_wronged_in_arms_of_unequal_size(sizes: dict[Arm, int]) -> None:
    rng = np.random.default_rng(1)
    retrained = world_rates(World(sizes, gap=0.3, removed=1, drift=DRIFT), OWNERS, rng)
    for verdict in (ACCUSED, PART):
        assert_at_most(round(OWNERS * retrained[verdict]), OWNERS, 0.01)
    drifted = world_rates(World(sizes, gap=0.3, drift=DRIFT), OWNERS, rng)
    credit = sum(share for verdict, share in drifted.items() if verdict.value.startswith("TARGETED"))
    assert_at_most(round(OWNERS * credit), OWNERS, 0.05)
