"""Pre-train the small encoder of a family on retain and unlearn together: what `unlearn_<family>.py` starts from.

    accelerate launch recipes/pretrain.py clip|simclr|moco [--config FILE] [--pretrain.num_train_epochs N]

The model is kept in the cache, where the family's unlearning recipe with the same data and settings finds it.
"""

import sys

from hf_unlearn.cli.guard import guarded
from hf_unlearn.cli.unlearn import pretrain_base
from hf_unlearn.errors import UserError
from hf_unlearn.runs.command_line import FAMILIES


def main() -> None:
    """Train the base model, unless the cache has it."""
    if len(sys.argv) < 2 or sys.argv[1] not in FAMILIES:
        raise UserError(f"usage: pretrain.py {'|'.join(FAMILIES)} [--config FILE] [further options of a run]")
    pretrain_base(sys.argv[2:], family=sys.argv[1])


if __name__ == "__main__":
    guarded(main)
