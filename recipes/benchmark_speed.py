"""Time the library beside other ways to do the same work: one process, in turns, ratios with their spread.

    python recipes/benchmark_speed.py                      # everything, on the GPU if there is one
    python recipes/benchmark_speed.py --device cpu --only views loss --repeats 5
    OMP_NUM_THREADS=1 python recipes/benchmark_speed.py --device cpu --cpu_time   # where other work runs, too
    python recipes/benchmark_speed.py --small --repeats 1  # a few seconds, to see that it runs

Needs the extra `benchmark` (`pip install -e .[benchmark]`), which brings lightly for the reference's loss. Pictures are
random: speed does not depend on what they show. Each line sets a first way to do the work against a second one. The
ratio is the second's time over the first's within one round: the median of the rounds and, in brackets, its range.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import torch
from speed.clip import clip_steps
from speed.evaluation import evaluations, probes
from speed.loss import loss_memory, loss_passes
from speed.planning import plannings
from speed.rounds import Row, Setting
from speed.running import checkpoint_evaluations, whole_trainings
from speed.views import view_steps

from hf_unlearn.cli.guard import guarded
from hf_unlearn.errors import UserError

PARTS: dict[str, Callable[[Setting, str], Iterator[Row]]] = {
    "views": view_steps,
    "clip": clip_steps,
    "loss": loss_passes,
    "memory": loss_memory,
    "train": whole_trainings,
    "checkpoint": checkpoint_evaluations,
    "evaluation": evaluations,
    "probe": probes,
    "planning": plannings,
}


GPU_PARTS = ("views", "clip", "loss", "train", "checkpoint")  # 5 minutes
ON_A_GPU = (
    "SimCLR AC step on a GPU against the reference's construction (wanted: 3 or more, end to end)",
    "share of a GPU's measured bf16 rate (wanted: 40% or more)",
)


def main() -> None:
    """Read the options, run the parts, print the table as it grows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    parser.add_argument("--repeats", type=int, default=5, help="rounds; each runs every contender once")
    parser.add_argument("--small", action="store_true", help="tiny models and batches: figures mean nothing")
    parser.add_argument(
        "--only", nargs="+", choices=PARTS, help="parts to run; default: all, on a GPU those it works in"
    )
    parser.add_argument("--workers", type=int, help="of the reference's DataLoader; default: 8 on a GPU, 0 on a CPU")
    parser.add_argument("--compile", action="store_true", help="torch_compile in the library's steps")
    parser.add_argument("--cpu_time", action="store_true", help="seconds of the processor, on a CPU that is shared")
    parser.add_argument("--output", type=Path, help="also write the table as JSON")
    options = parser.parse_args()
    if options.repeats < 1:
        raise UserError(f"--repeats {options.repeats} measures nothing; use at least 1")
    if options.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: no GPU is visible to PyTorch; use --device cpu")
    if options.cpu_time and options.device == "cuda":
        raise UserError("--cpu_time says nothing of a GPU; use --device cpu, or leave it out")
    workers = options.workers if options.workers is not None else 8 * (options.device == "cuda")
    clock = time.process_time if options.cpu_time else time.perf_counter
    device = torch.device(options.device)
    setting = Setting(device, options.small, options.repeats, workers, options.compile, clock)
    where = torch.cuda.get_device_name() if setting.cuda else f"CPU, {torch.get_num_threads()} threads"
    described = f"{where}; PyTorch {torch.__version__}; {setting.repeats} rounds"
    described += "; small" * setting.small + "; compiled" * setting.compiled + "; processor time" * options.cpu_time
    print(f"{described}\n")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in options.only or (GPU_PARTS if setting.cuda else PARTS):
            for row in PARTS[name](setting, folder):
                rows.append(row)
                print(row, flush=True)
    if not setting.cuda:
        print(*(f"{what}: not measured" for what in ON_A_GPU), sep="\n")
    if options.output is not None:
        options.output.write_text(json.dumps({"where": where, "rows": [asdict(row) for row in rows]}, indent=1) + "\n")


if __name__ == "__main__":
    guarded(main)
