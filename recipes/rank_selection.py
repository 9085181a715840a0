"""Report how well runs are chosen without Retrain, over finished runs of which the true gap is known as well.

    python recipes/rank_selection.py recipes/sweeps/*.json runs/benchmark/clip_openmoji/trial-* [--parts] [--mean]

One line a file: the rank correlation of the gap that is estimated without Retrain with the true one, which run it
selects, and by how much that run's true gap exceeds the best one's. `--parts` adds what each part of the estimate alone
would select, and `--mean` the mean over all files, where they hold the same runs on several splits of one task.
"""

import argparse
from pathlib import Path

from hf_unlearn.benchmarks.selection import averaged, read_candidates, selection_table
from hf_unlearn.cli.guard import guarded
from hf_unlearn.errors import UserError


def main() -> None:
    """Print the report over the files and folders named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", type=Path, nargs="+", help="a sweep's JSON, a results.json or a trial folder")
    parser.add_argument("--parts", action="store_true", help="add what each part of the estimate alone would select")
    parser.add_argument("--mean", action="store_true", help="add the mean over all files")
    given = parser.parse_args()
    tasks = {str(path): read_candidates(path) for path in given.paths}
    bare = [name for name, candidates in tasks.items() if len(candidates) < 2]
    if bare:
        raise UserError(f"{bare[0]} has fewer than two runs with a gap and an estimate; run its settings again")
    if given.mean:
        tasks["mean"] = averaged(list(tasks.values()))
    print(selection_table(tasks, by_part=given.parts))


if __name__ == "__main__":
    guarded(main)
