"""Unlearn image-text pairs from a CLIP-like encoder and compare methods: `hf-unlearn unlearn --family clip`.

    accelerate launch recipes/unlearn_clip.py
    accelerate launch recipes/unlearn_clip.py --config recipes/configs/clip_coco.yaml
    accelerate launch recipes/unlearn_clip.py --model_name_or_path M --dataset_name D --caption_column C \\
        --unlearn_request ids.txt --methods alignment_calibration --output_dir runs/x

Without `--model_name_or_path`, a small CLIP is pre-trained on the dataset first, once, and kept in the cache.
"""

import sys

from hf_unlearn.cli.guard import guarded
from hf_unlearn.cli.unlearn import run_methods

if __name__ == "__main__":
    guarded(lambda: run_methods(sys.argv[1:], family="clip"))
