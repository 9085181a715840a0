"""What attackers see of one model."""

import numpy as np

from hf_unlearn.benchmarks.attack_signals import drawn


def test_rows_are_a_draw_that_their_order_does_not_matter_to():
    """Rows may be sorted by class: the first ones would be of one class alone."""
    rows = drawn(1_000, 100)
    assert rows == sorted(set(rows)) == drawn(1_000, 100) and len(rows) == 100
    assert np.bincount(np.array(rows) // 100, minlength=10).min() >= 3
    assert drawn(5, 100) == [0, 1, 2, 3, 4]
