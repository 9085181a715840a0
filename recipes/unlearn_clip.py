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
from hf_unlearn.models.small_clip import build_small_clip
from hf_unlearn.runs.arguments import parse_run
from hf_unlearn.runs.experiment import Experiment
from hf_unlearn.runs.pretrain import pretrain
from hf_unlearn.runs.tables import text_table
from hf_unlearn.runs.task import prepare_task

CONFIGS = Path(__file__).parent / "configs"


def main() -> None:
    """Prepare the data, the base model and the methods; unlearn by each; show the comparison."""
    run = parse_run(default_config=CONFIGS / "clip_openmoji.yaml")
    task = prepare_task(run.arguments)
    base = run.arguments.model_name_or_path
    if base is None:
        model, processor = build_small_clip(caption for captions in task.train["captions"] for caption in captions)
        base = str(pretrain(task, model, processor, run.pretrain))
    experiment = Experiment(task, base, run.arguments, next(iter(run.methods.values())))
    for config in run.methods.values():
        experiment.unlearn(config)
    results = experiment.finish()
    if PartialState().is_main_process:
        print(f"\n{text_table(results)}\n\nCards, heatmaps and checkpoints: {run.arguments.output_dir}")


if __name__ == "__main__":
    guarded(main)
