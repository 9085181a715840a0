from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_unlearn.data.sampler import SplitSampler


def batches(sampler: SplitSampler, size: int) -> list[list[int]]:
    order = list(sampler)
    assert len(order) == len(sampler)
    return [order[start : start + size] for start in range(0, len(order), size)]


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 60), st.integers(0, 60), st.integers(2, 40), st.integers(0, 3))
def test_an_epoch_covers_retain_in_stratified_batches_of_one_shape(retain, unlearn, size, epoch):
    if retain + unlearn == 0:
        return
    sampler = SplitSampler(retain, unlearn, size)
    sampler.set_epoch(epoch)
    drawn = batches(sampler, size)
    assert len({len(batch) for batch in drawn}) == 1
    assert all(len(batch) <= size for batch in drawn)
    assert all(len(batch) == size for batch in drawn) or len(drawn) == 1  # a smaller one only when there is just one
    members = [sum(index >= retain for index in batch) for batch in drawn]
    assert len(set(members)) == 1
    counts = Counter(index for batch in drawn for index in batch)
    assert set(counts) <= set(range(retain + unlearn))
    if retain:
        assert set(range(retain)) <= set(counts)
        seen = [counts[index] for index in range(retain)]
        assert max(seen) - min(seen) <= 1  # the last batch is filled from a new permutation
        assert sum(seen) - retain < size
    else:
        assert set(counts) == set(range(unlearn))
    if retain and unlearn:
        wanted = size * unlearn / (retain + unlearn)
        assert members[0] == min(max(round(wanted), 2), unlearn, size - 1)
        again = [counts[retain + index] for index in range(unlearn)]
        assert max(again) - min(again) <= 1  # cycled evenly


@pytest.mark.parametrize(("size", "members"), [(2, 1), (3, 2), (10, 2), (40, 4)])
def test_small_batches_hold_two_unlearn_samples_where_they_can(size, members):
    for batch in batches(SplitSampler(90, 10, size), size):
        assert sum(index >= 90 for index in batch) == members


def test_no_sample_stands_twice_in_a_batch_when_the_split_is_a_multiple():
    for batch in batches(SplitSampler(36, 8, 11), 11):
        assert len(set(batch)) == 11


def test_the_order_depends_on_seed_and_epoch_alone():
    def order(seed: int, epoch: int) -> list[int]:
        sampler = SplitSampler(30, 6, 12, seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    first = order(0, 0)
    assert first == order(0, 0)
    sampler = SplitSampler(30, 6, 12, 0)
    assert list(sampler) == list(sampler) == first  # iterating changes nothing
    assert len({tuple(order(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9
