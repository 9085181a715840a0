"""Unlearn the rows of a benchmark in several requests, one after another, beside a Retrain after each.

    accelerate launch recipes/sequence.py recipes/benchmarks/clip_openmoji.yaml \\
        --methods retrain fine_tune alignment_calibration targeted_calibration --requests 5

Prints a row for each run: gap and agreement, how far earlier requests drifted, utility, and cost so far as a share of
one Retrain. Stopped half-way, the same command goes on with the runs that are missing; a run of other settings is run
again. A folder is of one number of requests, data and base model. Several may be at work in one output folder, on
methods or trials of their own, once the data is parted (--methods without a name). Options it does not know go to the
runs: --alignment_calibration.beta .5.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from accelerate import PartialState

from hf_unlearn.benchmarks.benchmark import Benchmark
from hf_unlearn.benchmarks.sequence import RequestSequence, run_sequence, write_sequence
from hf_unlearn.cli.guard import guarded
from hf_unlearn.runs.command_line import underscored


def main() -> None:
    """Read the arguments, run the sequences, print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("benchmark", type=Path, help="a file of recipes/benchmarks")
    parser.add_argument("--trials", type=int, nargs="+", help="seeds; default: the benchmark's")
    parser.add_argument(
        "--methods",
        nargs="*",
        default=["retrain", "fine_tune", "alignment_calibration", "targeted_calibration"],
        help="sequences to run; none: only part the data into requests, and print the table of what is finished",
    )
    parser.add_argument("--after", type=int, nargs="+", help="requests to retrain after; default: each")
    parser.add_argument("--requests", type=int, default=5, help="how many requests the rows are parted into")
    parser.add_argument("--output_dir", type=Path, help="default: runs/sequence/<benchmark>")
    given, extra = parser.parse_known_args(underscored(sys.argv[1:]))
    benchmark = Benchmark.load(given.benchmark)
    if given.trials:
        benchmark = replace(benchmark, trials=tuple(given.trials))
    sequence = RequestSequence(benchmark, tuple(given.methods), given.requests, tuple(extra))
    output_dir = given.output_dir or Path("runs/sequence") / given.benchmark.stem
    rows = run_sequence(sequence, output_dir, given.after)
    if PartialState().is_main_process:
        print(write_sequence(rows, output_dir))


if __name__ == "__main__":
    guarded(main)
