import numpy as np

from hf_unlearn.metrics.membership_probe import membership_probe


def test_it_finds_members_by_one_half_alone_and_nothing_where_there_is_nothing() -> None:
    rng = np.random.default_rng(0)
    seen, unseen = rng.normal(0.8, 1, (300, 5)), rng.normal(-0.8, 1, (300, 5))
    assert membership_probe(seen, unseen, rng.normal(0.8, 1, (200, 5))) > 0.95
    assert abs(membership_probe(seen, unseen, rng.normal(-0.8, 1, (200, 5))) - 0.5) < 0.06


def test_it_is_tested_on_none_of_the_samples_it_was_fitted_on() -> None:
    """More dimensions than samples: a probe tested on its own samples would see every one of them."""
    rng = np.random.default_rng(1)
    members, others, unlearn = (rng.normal(size=(count, 200)) for count in (40, 80, 60))
    assert abs(membership_probe(members, others, unlearn) - 0.5) < 0.12
