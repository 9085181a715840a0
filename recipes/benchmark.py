"""Run methods times trials and write the paper's tables and plots.

    accelerate launch recipes/benchmark.py recipes/benchmarks/clip_openmoji.yaml [--output_dir runs/benchmark/x]

Stopped half-way, the same command goes on with the runs that are missing or whose settings were changed.
"""

import argparse
import sys
from pathlib import Path

from accelerate import PartialState

from hf_unlearn.benchmarks.benchmark import Benchmark, run_benchmark, summarise, write_tables
from hf_unlearn.cli.guard import guarded
from hf_unlearn.runs.command_line import underscored
from hf_unlearn.runs.evaluation import ImageTextEvaluator, ImageViewEvaluator


def main() -> None:
    """Read the benchmark file, run it, print its tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("benchmark", type=Path, help="benchmark file, as those in recipes/benchmarks")
    parser.add_argument("--output_dir", type=Path, help="default: runs/benchmark/ and the file's name")
    given = parser.parse_args(underscored(sys.argv[1:]))
    benchmark = Benchmark.load(given.benchmark)
    output_dir = given.output_dir or Path("runs/benchmark") / given.benchmark.stem
    trials = run_benchmark(benchmark, output_dir)
    evaluator = ImageTextEvaluator if benchmark.family == "clip" else ImageViewEvaluator
    keys = [key for key in evaluator.gap_keys if all(key in runs["retrain"] for runs in trials.values())]
    if PartialState().is_main_process:
        print(write_tables(summarise(trials, keys, evaluator.family), benchmark, output_dir))


if __name__ == "__main__":
    guarded(main)
