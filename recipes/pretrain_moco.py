"""Pre-train a MoCo encoder on retain and unlearn together: the base model that `unlearn_moco.py` starts from.

    accelerate launch recipes/pretrain_moco.py [--config FILE] [--pretrain.num_train_epochs N]

The model is kept in the cache, where `unlearn_moco.py` with the same data and settings finds it.
"""

from pathlib import Path

from accelerate import PartialState

from hf_unlearn.cli.guard import guarded
from hf_unlearn.runs.arguments import parse_run
from hf_unlearn.runs.builders import moco
from hf_unlearn.runs.run_data import prepare_task
from hf_unlearn.runs.unlearn import base_model

DEFAULT_CONFIG = Path(__file__).parent / "configs" / "moco_openmoji.yaml"


def main() -> None:
    """Train from scratch, unless the cache already has this model, and say where it is."""
    run = parse_run(default_config=DEFAULT_CONFIG)
    folder = base_model(run, prepare_task(run.arguments), build=moco)
    if PartialState().is_main_process:
        print(f"Base model: {folder}")


if __name__ == "__main__":
    guarded(main)
