"""What every picture shares: its colours and resolution, and the mark that says whether samples can be recognised."""

from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from hf_unlearn.parsing import PICTURE_DAMAGE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MINUS = "\N{MINUS SIGN}"
INK, MUTED = "#1f2328", "#59636e"
DPI = 160
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PLAIN = {b"IHDR", b"PLTE", b"tRNS", b"sBIT", b"sRGB", b"pHYs", b"tEXt", b"zTXt", b"iTXt", b"tIME", b"IDAT", b"IEND"}
MARK = "Samples"  # text field of every PNG: whether it shows samples, which only who draws it knows for sure
SHOWN, NOT_SHOWN = "shown", "not shown"


def new_figure(width: float, height: float) -> "Figure":
    """Make an empty white figure of so many inches outside pyplot, at the resolution of every picture here."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=DPI, facecolor="white")


def save(figure: "Figure", path: str | Path, *, shown: bool = False) -> Path:
    """Write a figure as a PNG, marked with whether it shows samples.

    Args:
        figure: What to write.
        path: Where; missing folders are made.
        shown: Whether samples can be recognised on it, by picture or caption.

    Returns:
        The path written.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, format="png", metadata={MARK: SHOWN if shown else NOT_SHOWN})
    return target


def is_plain_png(data: bytes) -> bool:
    """Say whether a PNG shows every viewer the same one picture, and holds nothing else.

    Others could be animated, follow a gamma or colour profile of their own, or have a file behind their end.
    """
    place = len(_SIGNATURE)
    kinds = []
    while data.startswith(_SIGNATURE) and place + 8 <= len(data):
        kinds.append(data[place + 4 : place + 8])
        place += 12 + int.from_bytes(data[place : place + 4])
    return place == len(data) and kinds[-1:] == [b"IEND"] and set(kinds) <= _PLAIN


def shows_samples(path: str | Path) -> bool | None:
    """Read from a PNG that was drawn here whether it shows samples; None for any other picture."""
    try:
        with Image.open(path, formats=["PNG"]) as picture:
            return {SHOWN: True, NOT_SHOWN: False}.get(picture.info.get(MARK, ""))
    except (*PICTURE_DAMAGE, Image.DecompressionBombError):  # no picture at all
        return None
