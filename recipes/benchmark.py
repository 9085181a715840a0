"""Run methods times trials and write the paper's tables and plots.

    accelerate launch recipes/benchmark.py recipes/benchmarks/clip_openmoji.yaml [--output_dir runs/benchmark/x]

Stopped half-way, the same command goes on with the runs that are missing or whose settings were changed.
"""

import sys
from pathlib import Path

from hf_unlearn.benchmarks.benchmark import Benchmark, run_benchmark, summarise, write_tables
from hf_unlearn.cli.guard import guarded
from hf_unlearn.errors import UserError
from hf_unlearn.runs.command_line import underscored
from hf_unlearn.runs.evaluation import ImageTextEvaluator, ImageViewEvaluator


def main() -> None:
    """Read the benchmark file, run it, print its tables."""
    words = underscored(sys.argv[1:])
    if len(words) not in (1, 3) or words[1:2] not in ([], ["--output_dir"]):
        raise UserError("usage: benchmark.py CONFIG.yaml [--output_dir FOLDER]")
    path = Path(words[0])
    benchmark = Benchmark.load(path)
    output_dir = Path(words[2]) if len(words) == 3 else Path("runs/benchmark") / path.stem
    trials = run_benchmark(benchmark, output_dir)
    evaluator = ImageTextEvaluator if benchmark.family == "clip" else ImageViewEvaluator
    keys = [key for key in evaluator.gap_keys if all(key in runs["retrain"] for runs in trials.values())]
    print(write_tables(summarise(trials, keys, evaluator.family), benchmark, output_dir))


if __name__ == "__main__":
    guarded(main)
