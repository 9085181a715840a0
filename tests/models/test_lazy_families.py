"""`import hf_unlearn` is enough for the Auto classes, and loads no PyTorch."""

import subprocess
import sys

import pytest

from hf_unlearn.models.moco import MoCoConfig, MoCoModel
from hf_unlearn.models.simclr import SimCLRConfig, SimCLRModel

ORDERS = {
    "the library first": "import hf_unlearn\nassert not {'torch', 'transformers'} & set(sys.modules)\n"
    "from transformers import AutoConfig, AutoModel\nAutoConfig.for_model('clip')",
    "transformers first": "from transformers import AutoConfig, AutoModel\nAutoModel._model_mapping\nimport hf_unlearn",
}


@pytest.mark.parametrize("order", ORDERS)
def test_the_auto_classes_know_the_families(order, tmp_path):
    SimCLRModel(SimCLRConfig(width=4)).save_pretrained(tmp_path / "simclr")
    MoCoModel(MoCoConfig(width=4, queue_size=4)).save_pretrained(tmp_path / "moco")
    program = (
        f"import sys\n{ORDERS[order]}\n"
        "configs = [type(AutoConfig.from_pretrained(folder)).__module__ for folder in sys.argv[1:]]\n"
        "models = [type(AutoModel.from_pretrained(folder)).__module__ for folder in sys.argv[1:]]\n"
        "print(*configs, *models)"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "simclr"), str(tmp_path / "moco")]
    result = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=True)
    own = [f"hf_unlearn.models.view_encoders.{{}}_{family}" for family in ("simclr", "moco")]
    expected = [name.format(kind) for kind in ("configuration", "modeling") for name in own]
    assert result.stdout.split() == expected
