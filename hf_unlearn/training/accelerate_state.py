"""accelerate's state of devices, processes and precision, kept for each config and trainer."""

import os

from accelerate import PartialState
from accelerate.state import AcceleratorState

from hf_unlearn.errors import UserError


class AccelerateState:
    """What accelerate's state is when this is made.

    That state is one for the whole process, and every `TrainingArguments` that is built sets it anew: without this, a
    trainer would train on the devices, processes and in the precision of whichever config was built last.
    """

    def __init__(self) -> None:
        self._kept = [(kind, dict(kind._shared_state)) for kind in (PartialState, AcceleratorState)]

    def restore(self) -> None:
        """Make it accelerate's state again."""
        for kind, kept in self._kept:
            shared = kind._shared_state
            if shared != kept:
                shared.clear()
                shared.update(kept)


def refuse_lone_processes() -> None:
    """Refuse a launch of several processes that are to train as one each: all would be the first, and write alike."""
    launched = int(os.environ.get("WORLD_SIZE", "1")) if "LOCAL_RANK" in os.environ else 1  # as launchers set both
    if launched > 1 and PartialState().num_processes == 1:
        raise UserError(
            f"{launched} processes were launched, but without an accelerator each would train alone and write to the "
            "same folder; set use_cpu (--use_cpu true), or launch one process"
        )
