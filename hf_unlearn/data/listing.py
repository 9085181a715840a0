"""How a message lists many items: the first twenty and a count."""

from collections.abc import Iterable
from itertools import islice

LIMIT = 20


def listed(items: Iterable[object], total: int | None = None) -> str:
    """Join items by commas, the first 20 of them, followed by how many more there are.

    Args:
        items: What is to be listed.
        total: How many items there are where `items` holds only the first ones.

    Example:
        >>> listed(["a", "b"])
        'a, b'
        >>> listed(range(300)).endswith("18, 19 and 280 more")
        True
    """
    iterator = iter(items)
    shown = [str(item) for item in islice(iterator, LIMIT)]
    more = sum(1 for _ in iterator) if total is None else total - len(shown)
    return ", ".join(shown) + (f" and {more:,} more" if more else "")
