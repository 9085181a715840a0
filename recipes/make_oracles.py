"""Make the oracle of an embedded task: its base model, and the alignments of its unlearn samples under many Retrains.

    python recipes/make_oracles.py clip_openmoji [--retrains 16] [--output_dir hf_unlearn/oracles/clip_openmoji]

Stopped half-way, the same command goes on with the Retrains that are missing. `hf-unlearn evaluate MODEL --oracle NAME`
then measures a model beside them.
"""

import argparse
import sys
from pathlib import Path

from accelerate import PartialState

from hf_unlearn.benchmarks.oracles import FOLDER, make_oracle
from hf_unlearn.cli.guard import guarded
from hf_unlearn.runs.command_line import underscored


def main() -> None:
    """Train what is missing, and say how far apart the Retrains are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="a config of the package, such as clip_openmoji")
    parser.add_argument("--retrains", type=int, default=16, help="how many, with the seeds 0, 1, 2 and so on")
    parser.add_argument("--output_dir", type=Path, help="default: the package's own folder of oracles")
    given = parser.parse_args(underscored(sys.argv[1:]))
    folder = given.output_dir or FOLDER / given.config
    oracle = make_oracle(given.config, range(given.retrains), folder, say=print)
    if PartialState().is_main_process:
        print(f"{len(oracle.seeds)} Retrains in {oracle.folder}")


if __name__ == "__main__":
    guarded(main)
