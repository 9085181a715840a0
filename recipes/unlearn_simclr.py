"""Unlearn images from a SimCLR encoder and compare methods: `hf-unlearn unlearn --family simclr`.

    accelerate launch recipes/unlearn_simclr.py
    accelerate launch recipes/unlearn_simclr.py --config recipes/configs/simclr_cifar10_10pct.yaml

Without `--model_name_or_path`, the encoder is pre-trained on the dataset first, once, and kept in the cache.
"""

import sys

from hf_unlearn.cli.guard import guarded
from hf_unlearn.cli.unlearn import run_methods

if __name__ == "__main__":
    guarded(lambda: run_methods(sys.argv[1:], family="simclr"))
