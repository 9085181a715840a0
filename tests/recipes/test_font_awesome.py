"""The second data set is drawn from the icons' own package: a picture for each label, solid before brand."""

import json
import runpy
import sys
from pathlib import Path

import numpy as np
from PIL import Image

RECIPE = Path(__file__).parents[2] / "recipes" / "font_awesome.py"
SQUARE = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} 64"><path d="M0 0H{width}V64H0z"/></svg>'
ICONS = {
    "box": {"label": "Box", "free": ["solid", "brands"]},
    "crate": {"label": "box ", "free": ["solid"]},  # a label that is there already
    "ghost": {"label": "Ghost", "free": []},  # not free
    "maker": {"label": "Maker", "free": ["brands"]},
}


def test_icons_become_pictures_with_their_labels(tmp_path, monkeypatch):
    root = tmp_path / "fontawesomefree" / "static" / "fontawesomefree"
    for style in ("solid", "brands"):
        (root / "svgs" / style).mkdir(parents=True)
        for name in ICONS:
            (root / "svgs" / style / f"{name}.svg").write_text(SQUARE.format(width=32 if style == "solid" else 128))
    (root / "metadata").mkdir()
    (root / "metadata" / "icons.json").write_text(json.dumps(ICONS))
    (tmp_path / "fontawesomefree" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "fontawesomefree", raising=False)
    monkeypatch.setattr(sys, "argv", ["font_awesome.py", str(tmp_path / "drawn")])
    runpy.run_path(str(RECIPE))["main"]()
    rows = [json.loads(line) for line in (tmp_path / "drawn" / "metadata.jsonl").read_text().splitlines()]
    assert rows == [{"file_name": "box.png", "caption": "Box"}, {"file_name": "maker.png", "caption": "Maker"}]
    box, maker = (np.asarray(Image.open(tmp_path / "drawn" / row["file_name"]).convert("L")) for row in rows)
    assert box.shape == maker.shape == (64, 64)
    assert (box[:, :14] == 255).all() and (box[:, 18:46] == 0).all()  # solid, in the middle of white
    assert (maker[:14] == 255).all() and (maker[18:46] == 0).all()  # a wide one is made to fit
