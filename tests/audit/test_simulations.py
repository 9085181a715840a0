"""Longer simulations than every run of the tests has time for: `pytest -m simulation tests/audit/test_simulations.py`.

`tests/audit_sections.py` prints the same figures, and more of them, as a table.
"""

import numpy as np
import pytest
from audit.test_acceptance import DRIFT, assert_at_most
from audit_attacks import ATTACKS, SMOOTH, verdicts
from audit_sections import ACCUSED, BEST, PART, scenes, several, uneven, world_rates
from audit_simulation import C, R, U, World

from hf_unlearn.records.audit_result import Verdict

pytestmark = pytest.mark.simulation


@pytest.mark.parametrize("name", [name for name in ATTACKS if name != SMOOTH])
def test_no_fake_gets_the_best_verdict_in_more_than_one_of_twenty(name: str) -> None:
    assert_at_most(verdicts(ATTACKS[name], 100)[BEST], 100, 0.05)


@pytest.mark.parametrize("count", [1, 10, 30])
def test_exact_retraining_is_not_wronged_among_many_owners(count: int) -> None:
    honest, _ = several(count, 600 // count, np.random.default_rng(count))
    assert_at_most(honest[ACCUSED], 600, 0.01)
    assert_at_most(honest[PART], 600, 0.01)


@pytest.mark.parametrize("n", [9, 20, 50])
def test_a_drift_is_not_credited_and_exact_retraining_is(n: int) -> None:
    rng = np.random.default_rng(n)
    sizes = {U: n, R: n, C: n}
    drifted = world_rates(World(sizes, gap=0.3, drift=DRIFT), 1_000, rng)
    credit = sum(share for verdict, share in drifted.items() if verdict.value.startswith("TARGETED"))
    assert_at_most(round(1_000 * credit), 1_000, 0.05)
    assert_at_most(round(1_000 * uneven(True, n, 1_000, rng)), 1_000, 0.05)
    retrained = world_rates(World(sizes, gap=0.3, removed=1, drift=DRIFT), 1_000, rng)
    for verdict in (ACCUSED, PART):
        assert_at_most(round(1_000 * retrained[verdict]), 1_000, 0.01)
    assert n < 20 or retrained[Verdict.WITHIN_BAND] > 0.88


@pytest.mark.parametrize("gap", [0.1, 0.3])
def test_twins_that_are_known_accuse_nobody(gap: float) -> None:
    assert scenes(20, 10, gap, 200, np.random.default_rng(0), known=True)[ACCUSED] == 0
