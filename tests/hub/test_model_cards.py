"""The cards kept in `model_cards/` are as generated: an edit by hand, of text, figure or picture, fails here."""

from pathlib import Path

import pytest

from hf_unlearn.hub.verification import check_card

MODEL_CARDS = Path(__file__).parents[2] / "model_cards"
FOLDERS = sorted(path.parent for path in MODEL_CARDS.glob("*/README.md"))


@pytest.mark.parametrize("folder", FOLDERS, ids=[folder.name for folder in FOLDERS])
def test_card_is_as_generated(folder: Path) -> None:
    assert check_card(folder) == ()
    assert {path.name for path in folder.iterdir()} == {"README.md", "unlearning.json", "evaluation.json", "assets"}
