"""Draw a second data set of pictures and names, to see whether settings that were tuned on OpenMoji hold elsewhere.

    pip install fontawesomefree==6.6.0
    python recipes/font_awesome.py data/font_awesome
    accelerate launch recipes/unlearn_clip.py --dataset_name data/font_awesome --caption_column caption \\
        --unlearn_fraction 0.1

One picture of 64 x 64 for each icon of Font Awesome Free: solid where it is, else brand, black on white, with its label
as the caption. Icons are licensed CC BY 4.0 by Fonticons, Inc.
"""

import argparse
import io
import json
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

import resvg_py
from PIL import Image

from hf_unlearn.cli.guard import guarded
from hf_unlearn.errors import UserError

SIDE = 64
STYLES = ("solid", "brands")


def main() -> None:
    """Draw every icon that has a style and a label of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where to draw them; it must not exist yet")
    folder = parser.parse_args().folder
    if find_spec("fontawesomefree") is None:
        raise UserError("the icons are not installed; pip install fontawesomefree==6.6.0")
    root = files("fontawesomefree") / "static" / "fontawesomefree"
    folder.mkdir(parents=True)
    rows: dict[str, dict[str, str]] = {}
    for name, icon in sorted(json.loads((root / "metadata" / "icons.json").read_text("utf-8")).items()):
        style, label = next((style for style in STYLES if style in icon["free"]), None), icon["label"].strip()
        if style is not None and label.lower() not in rows:
            draw((root / "svgs" / style / f"{name}.svg").read_text("utf-8")).save(folder / f"{name}.png")
            rows[label.lower()] = {"file_name": f"{name}.png", "caption": label}
    (folder / "metadata.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows.values()), encoding="utf-8")
    print(f"{len(rows)} pictures in {folder}")


def draw(svg: str) -> Image.Image:
    """An icon in the middle of a white square."""
    icon = Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg, height=SIDE)))).convert("RGBA")
    if icon.width > SIDE:
        icon = icon.resize((SIDE, round(icon.height * SIDE / icon.width)), Image.Resampling.LANCZOS)
    square = Image.new("RGB", (SIDE, SIDE), "white")
    square.paste(icon, ((SIDE - icon.width) // 2, (SIDE - icon.height) // 2), icon)
    return square


if __name__ == "__main__":
    guarded(main)
