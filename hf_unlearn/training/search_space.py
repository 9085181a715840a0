"""Where a method's settings are searched: a line in its config's file, read by `hf-unlearn tune`.

    search_space: ClassVar[SearchSpace] = everywhere(learning_rate=Around(10), beta=Uniform(0, 1))

Epochs are left alone, so that every setting of a method has the same budget.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Uniform:
    """From low to high, evenly."""

    low: float
    high: float


@dataclass(frozen=True)
class Log:
    """From low to high, evenly in the logarithm."""

    low: float
    high: float


@dataclass(frozen=True)
class Around:
    """From the run's own value divided by a factor to that value times the factor, evenly in the logarithm."""

    factor: float


@dataclass(frozen=True)
class Choice:
    """One of these values."""

    values: tuple[int | float | str | None, ...]


@dataclass(frozen=True)
class Same:
    """Always the value of another field."""

    field: str


Range = Uniform | Log | Around | Choice | Same
Ranges = Mapping[str, Range]


@dataclass(frozen=True)
class SearchSpace:
    """Field of the method's config -> range, for each family: optimisers and units differ between them."""

    image_text: Ranges
    views: Ranges

    def of(self, family: str) -> Ranges:
        """The ranges of the family `image-text` or `views`."""
        return self.image_text if family == "image-text" else self.views


def everywhere(**ranges: Range) -> SearchSpace:
    """The same ranges for both families."""
    return SearchSpace(ranges, ranges)
