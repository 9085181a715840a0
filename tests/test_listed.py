"""Listing: the first twenty items and how many more."""

from hf_unlearn.errors import listed


def test_short_lists_are_whole() -> None:
    assert listed([]) == ""
    assert listed(["a", 2]) == "a, 2"
    assert listed(range(20)).endswith("18, 19")


def test_long_lists_are_counted() -> None:
    assert listed(range(21)).endswith("18, 19 and 1 more")
    assert listed(iter(range(5_000))).endswith("19 and 4,980 more")


def test_a_total_stands_for_items_that_are_not_given() -> None:
    assert listed(["a", "b"], total=2) == "a, b"
    assert listed(["a", "b"], total=1_002) == "a, b and 1,000 more"
