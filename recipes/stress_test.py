"""Attack unlearning methods, and Retrain in the same way, on one trial of a benchmark.

    accelerate launch recipes/stress_test.py recipes/benchmarks/clip_openmoji.yaml \\
        --methods fine_tune alignment_calibration --ensemble 4

Prints every attack's value on Retrain and on each method, with the difference, and leaves results.json and results.md
in the output folder. Stopped half-way, the same command goes on with the models that are missing. Options it does not
know go to the methods: --alignment_calibration.beta .5.
"""

import argparse
import sys
from pathlib import Path

from accelerate import PartialState

from hf_unlearn.benchmarks.benchmark import Benchmark
from hf_unlearn.benchmarks.stress_test import StressTest, run_stress_test, write_comparison
from hf_unlearn.cli.guard import guarded
from hf_unlearn.runs.command_line import underscored

# A test's size: a few pictures, one epoch of everything. Of larger batches there would be one alone, all of it warm-up.
SMALL = ["--num_samples", "150", "--unlearn_fraction", ".2"]
SMALL += ["--num_train_epochs", "1", "--pretrain.num_train_epochs", "1"]
SMALL += ["--per_device_train_batch_size", "16", "--pretrain.per_device_train_batch_size", "16"]


def main() -> None:
    """Read the arguments, run the attacks, print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("benchmark", type=Path, help="a file of recipes/benchmarks")
    parser.add_argument("--trial", type=int, default=0, help="seed of the split and the base model")
    parser.add_argument("--methods", nargs="+", default=["fine_tune", "alignment_calibration"])
    parser.add_argument("--ensemble", type=int, default=4, help="models of each method, and Retrains")
    parser.add_argument("--steps", type=int, default=20, help="updates of relearning")
    parser.add_argument("--near_copies", type=int, default=0, help="unlearn samples with near-copies in retain")
    parser.add_argument("--copies_each", type=int, default=4, help="near-copies of each of them")
    parser.add_argument("--output_dir", type=Path, help="default: runs/stress_test/<benchmark>/trial-<trial>")
    parser.add_argument("--small", action="store_true", help="a few pictures and one epoch, to see that it runs")
    given, extra = parser.parse_known_args(underscored(sys.argv[1:]))
    test = StressTest(
        Benchmark.load(given.benchmark),
        trial=given.trial,
        methods=tuple(given.methods),
        ensemble=given.ensemble,
        steps=given.steps,
        near_copies=given.near_copies,
        copies_each=given.copies_each,
        extra=(*(SMALL if given.small else ()), *extra),
    )
    name = f"trial-{given.trial}" + (f"-near_copies-{given.near_copies}" if given.near_copies else "")
    output_dir = given.output_dir or Path("runs/stress_test") / given.benchmark.stem / name
    rows = run_stress_test(test, output_dir)
    if PartialState().is_main_process:
        print(write_comparison(rows, test, output_dir))


if __name__ == "__main__":
    guarded(main)
