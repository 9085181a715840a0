"""Every recipe tells what it does and takes before it does anything."""

import runpy
import sys
from pathlib import Path

import pytest

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.py"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_explains_itself(monkeypatch, capsys, recipe):
    monkeypatch.setattr(sys, "argv", [str(recipe), "--help"])
    monkeypatch.syspath_prepend(recipe.parent)
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(recipe), run_name="__main__")
    told = capsys.readouterr()
    assert not ended.value.code and not told.err
    assert "usage" in told.out.lower() and "--help" in told.out
