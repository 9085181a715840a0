"""Pre-train a MoCo encoder on retain and unlearn together: the base model that `unlearn_moco.py` starts from.

    accelerate launch recipes/pretrain_moco.py [--config FILE] [--pretrain.num_train_epochs N]

The model is kept in the cache, where `unlearn_moco.py` with the same data and settings finds it.
"""

import sys

from hf_unlearn.cli.guard import guarded
from hf_unlearn.cli.unlearn import pretrain_base

if __name__ == "__main__":
    guarded(lambda: pretrain_base(sys.argv[1:], family="moco"))
