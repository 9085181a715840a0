"""Time the library beside other ways to do the same work: one process, in turns, ratios with their spread.

    python recipes/benchmark_speed.py                      # everything, on the GPU if there is one
    python recipes/benchmark_speed.py --device cpu --only views loss --repeats 5
    OMP_NUM_THREADS=1 python recipes/benchmark_speed.py --device cpu --cpu_time   # where other work runs, too
    python recipes/benchmark_speed.py --small --repeats 1  # a few seconds, to see that it runs

Pictures are random: speed does not depend on what they show. Each line sets a first way to do the work against a second
one. The ratio is the second's time over the first's within one round: the median of the rounds and, in brackets, its
range. On a GPU a round is ten calls, whatever is compiled is run both compiled and not, and nothing new is begun after
`--minutes`, so that the table is there within five.
"""

import argparse
import gc
import json
import math
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, replace
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


COMPILED = ("views", "clip", "train")  # the parts that `torch_compile` changes
ON_A_GPU = ("views", "checkpoint", "loss", "train", "clip")  # those that need one
GPU_MINUTES = 3.0  # what has been begun by then is finished
NEED_A_GPU = (
    "SimCLR AC step on a GPU against the published construction (wanted: 3 or more, end to end)",
    "share of a GPU's measured bf16 rate (wanted: 40% or more)",
)


def main() -> None:
    """Read the options, run the parts, print the table as it grows."""
    started = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    parser.add_argument(
        "--repeats", type=int, help="rounds; each runs every contender; default: 3 on a GPU, 5 on a CPU"
    )
    parser.add_argument("--small", action="store_true", help="tiny models and batches: figures mean nothing")
    parser.add_argument(
        "--only", nargs="+", choices=PARTS, help="parts to run; default: all, on a GPU those that need one"
    )
    parser.add_argument("--workers", type=int, help="of the reference's DataLoader; default: 8 on a GPU, 0 on a CPU")
    parser.add_argument(
        "--compile",
        choices=("no", "yes", "both"),
        help="torch_compile in the library's steps; default: both on a GPU, no on a CPU",
    )
    parser.add_argument("--cpu_time", action="store_true", help="seconds of the processor, on a CPU that is shared")
    parser.add_argument("--minutes", type=float, help="begin nothing new after so many; default: 3 on a GPU")
    parser.add_argument("--output", type=Path, help="also write the table as JSON, anew after every line")
    options = parser.parse_args()
    cuda = options.device == "cuda"
    repeats = options.repeats if options.repeats is not None else 3 if cuda else 5
    if repeats < 1:
        raise UserError(f"--repeats {repeats} measures nothing; use at least 1")
    if cuda and not torch.cuda.is_available():
        raise UserError("--device cuda: no GPU is visible to PyTorch; use --device cpu")
    if options.cpu_time and cuda:
        raise UserError("--cpu_time says nothing of a GPU; use --device cpu, or leave it out")
    minutes = options.minutes if options.minutes is not None else GPU_MINUTES if cuda else math.inf
    setting = Setting(
        torch.device(options.device),
        options.small,
        repeats,
        workers=options.workers if options.workers is not None else 8 * cuda,
        clock=time.process_time if options.cpu_time else time.perf_counter,
        deadline=started + 60 * minutes,
    )
    where = torch.cuda.get_device_name() if cuda else f"CPU, {torch.get_num_threads()} threads"
    described = f"{where}; PyTorch {torch.__version__}; {repeats} rounds"
    print(f"{described}{'; small' * setting.small}{'; processor time' * options.cpu_time}\n", flush=True)
    rows, failed = [], []
    with tempfile.TemporaryDirectory() as folder:
        for name, compiled in _parts(options.only or (ON_A_GPU if cuda else PARTS), options.compile, cuda):
            part = f"{name}{', compiled' * compiled}"
            if setting.seconds_left < 0:
                print(f"{part}: not measured, {minutes:g} minutes are over")
                continue
            gc.collect()  # the memory of the part before
            torch.compiler.reset()
            try:
                for row in PARTS[name](replace(setting, compiled=compiled), folder):
                    rows.append(row)
                    print(row, flush=True)
                    if options.output is not None:
                        table = {"where": where, "rows": [asdict(each) for each in rows]}
                        options.output.write_text(json.dumps(table, indent=1) + "\n")
            except Exception:  # noqa: BLE001  # one part must not take the others' figures with it
                traceback.print_exc()
                failed.append(part)
            print(f"    [{part}: at {time.monotonic() - started:.0f} s]", flush=True)
    if failed:
        raise UserError(f"parts that failed, with their tracebacks above: {', '.join(failed)}")
    if not cuda:
        print(*(f"{what}: not measured" for what in NEED_A_GPU), sep="\n")


def _parts(names: Iterable[str], compiled: str | None, cuda: bool) -> list[tuple[str, bool]]:
    """The parts in their order and whether each is compiled: on a GPU all as they come first."""
    names, chosen = list(names), compiled or ("both" if cuda else "no")
    plain = [(name, False) for name in names if chosen != "yes" or name not in COMPILED]
    return plain + [(name, True) for name in names if chosen != "no" and name in COMPILED]


if __name__ == "__main__":
    guarded(main)
