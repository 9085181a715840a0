"""Unlearn image-text pairs from a CLIP-like encoder and compare methods.

    accelerate launch recipes/unlearn_clip.py
    accelerate launch recipes/unlearn_clip.py --config recipes/configs/clip_coco.yaml
    accelerate launch recipes/unlearn_clip.py --model_name_or_path M --dataset_name D --caption_column C \
        --unlearn_request ids.txt --methods alignment_calibration --output_dir runs/x

Without `--model_name_or_path`, a small CLIP is pre-trained on the dataset first, once, and kept in the cache.
"""

from pathlib import Path

from accelerate import PartialState

from hf_unlearn.cli.guard import guarded
from hf_unlearn.runs.arguments import parse_run
from hf_unlearn.runs.builders import small_clip
from hf_unlearn.runs.tables import text_table
from hf_unlearn.runs.unlearn import unlearn_and_compare

DEFAULT_CONFIG = Path(__file__).parent / "configs" / "clip_openmoji.yaml"


def main() -> None:
    """Unlearn by every chosen method and show the comparison."""
    run = parse_run(default_config=DEFAULT_CONFIG)
    results = unlearn_and_compare(run, build=small_clip)
    if PartialState().is_main_process:
        print(f"\n{text_table(results)}\n\nCards, heatmaps and checkpoints: {run.arguments.output_dir}")


if __name__ == "__main__":
    guarded(main)
