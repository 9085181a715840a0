"""Where the heatmaps of a picture lie, in inches: what draws them and what reads them back must agree."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

PANEL = 2.62  # inches, the heatmap's side
MAX_VALUES = 8  # samples up to which each cell prints its value
MAX_LABELS = 16  # samples up to which the axes carry thumbnails, captions or numbers
STRIP = 0.5  # inches, a thumbnail's largest side
CAPTION_WIDTH = 18  # characters a line; two lines for few samples, one for more
CHARACTER = 0.064  # inches, a generous width of one character of a caption
_TOP, _GAP, BAR = 0.52, 0.16, 1.05  # inches above a panel, between two of them, and of the colour bar
_HEADING = 0.36


@dataclass(frozen=True)
class PanelLayout:
    """A picture of heatmaps, in rows of three with one colour bar.

    Args:
        samples: Samples on each axis.
        panels: Heatmaps.
        captions: The samples' captions, written below the columns.
        titled: Whether a heading stands above.
    """

    samples: int
    panels: int
    captions: tuple[str, ...] | None = None
    titled: bool = False

    @property
    def below(self) -> float:
        """Inches that the labels below a panel take."""
        if self.samples > MAX_LABELS:
            return 0.04
        return _caption_strip(self.captions) if self.captions else min(PANEL / self.samples, STRIP)

    @property
    def bottom(self) -> float:
        """Inches below a panel."""
        return self.below + 0.34

    @property
    def left(self) -> float:
        """Inches left of a panel."""
        return min(PANEL / self.samples, STRIP) + 0.36 if self.samples <= MAX_LABELS else 0.36

    @property
    def width(self) -> float:
        """Inches of the whole picture."""
        columns = min(3, self.panels)
        return columns * (self.left + PANEL) + (columns - 1) * _GAP + 0.1 + BAR

    @property
    def heading(self) -> float:
        """Inches of the heading."""
        return _HEADING if self.titled else 0.0

    @property
    def height(self) -> float:
        """Inches of the whole picture."""
        rows = -(-self.panels // 3)
        return self.heading + rows * (_TOP + PANEL + self.bottom) + 0.06

    def corner(self, panel: int) -> tuple[float, float]:
        """The lower left corner of a panel, in inches from that of the picture."""
        row, column = divmod(panel, 3)
        x = self.left + column * (self.left + PANEL + _GAP)
        return x, self.height - self.heading - row * (_TOP + PANEL + self.bottom) - _TOP - PANEL

    @property
    def bar_height(self) -> float:
        """Inches of the colour bar."""
        return self.height - self.heading - self.bottom - _TOP


def short_caption(caption: str, lines: int = 2) -> str:
    """Wrap a caption to so many lines of at most 18 characters, with an ellipsis where it was cut; ∅ for an empty one.

    >>> short_caption("a dog on a long leash", lines=1)
    'a dog on a long…'
    """
    return "\n".join(textwrap.wrap(caption, CAPTION_WIDTH, max_lines=lines, placeholder="…")) or "∅"


def caption_lines(n: int) -> int:
    """Lines of a caption that fit under one of n columns."""
    return 2 if n <= MAX_VALUES else 1


def _caption_strip(captions: Sequence[str]) -> float:
    """Inches that captions written upwards take."""
    lines = (line for text in captions for line in short_caption(text, caption_lines(len(captions))).splitlines())
    return 0.16 + CHARACTER * max(map(len, lines))
