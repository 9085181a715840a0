"""Unlearn images from a SimCLR encoder and compare methods.

    accelerate launch recipes/unlearn_simclr.py
    accelerate launch recipes/unlearn_simclr.py --config recipes/configs/simclr_cifar10_10pct.yaml

Without `--model_name_or_path`, the encoder is pre-trained on the dataset first, once, and kept in the cache.
"""

from pathlib import Path

from accelerate import PartialState

from hf_unlearn.cli.guard import guarded
from hf_unlearn.runs.arguments import parse_run
from hf_unlearn.runs.builders import simclr
from hf_unlearn.runs.tables import text_table
from hf_unlearn.runs.unlearn import unlearn_and_compare

DEFAULT_CONFIG = Path(__file__).parent / "configs" / "simclr_openmoji.yaml"


def main() -> None:
    """Unlearn by every chosen method and show the comparison."""
    run = parse_run(default_config=DEFAULT_CONFIG)
    results = unlearn_and_compare(run, build=simclr)
    if PartialState().is_main_process:
        signal = results.rows[0].metrics["emia_signal_auc"]
        print(f"\nBefore unlearning, views tell members from non-members with an AUC of {signal:.1f}% (chance: 50%).")
        print(f"\n{text_table(results)}\n\nCards, heatmaps and checkpoints: {run.arguments.output_dir}")


if __name__ == "__main__":
    guarded(main)
