"""Pre-train the small encoder of a family on retain and unlearn together: what `unlearn_<family>.py` starts from.

    accelerate launch recipes/pretrain.py clip|simclr|moco [--config FILE] [--pretrain.num_train_epochs N]

The model is kept in the cache, where the family's unlearning recipe with the same data and settings finds it.
"""

import argparse

from hf_unlearn.cli.guard import guarded
from hf_unlearn.cli.unlearn import pretrain_base
from hf_unlearn.runs.command_line import FAMILIES


def main() -> None:
    """Train the base model, unless the cache has it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "family", choices=FAMILIES, help="whose encoder; further options are those of hf-unlearn unlearn"
    )
    given, options = parser.parse_known_args()
    pretrain_base(options, given.family)


if __name__ == "__main__":
    guarded(main)
