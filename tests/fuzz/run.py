"""`make fuzz FUZZ_MINUTES=30`: every parser in turn on files that are almost right; what fails is kept in the corpus.

The parsers work in processes of their own, one a core, so that a hang, a crash or a blow-up of memory is told as well.
"""

import argparse
import hashlib
import logging
import multiprocessing
import os
import resource
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random

from fuzz.material import made
from fuzz.mutate import mutant
from fuzz.parsers import PARSERS, SECONDS, fault

from hf_unlearn.cli.terminal import quiet_loading

CORPUS = Path(__file__).parent / "corpus"
FORKS = multiprocessing.get_context("fork")  # what is imported here is there
WAIT = 15 * SECONDS  # for a word of a parser, which may get little of the processor
GROWTH = 2 * 2**20  # kilobytes by which one file may make the process grow


def work(names: list[str], seconds: float, seed: int, pipe: Connection) -> None:
    """Try each parser for a while; tell each file before it is read, and what became of it."""
    quiet_loading()
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    for name in names:
        parser, random = PARSERS[name], Random(f"{name} {seed}")
        content = (made(parser.material) / parser.file).read_bytes()
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            tried = mutant(content, parser.file, random)
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            pipe.send((name, tried))
            found = fault(parser, tried)
            if found is None and resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before > GROWTH:
                found = "the memory of the process grew by more than 2 GB"
            pipe.send((None, found))
    pipe.send(("", None))


def fuzz(names: list[str], seconds: float, seed: int) -> tuple[int, int]:
    """Try the parsers one after the other, and print what came of each; how many files and faults there were."""
    counts, faults = dict.fromkeys(names, 0), {name: dict[str, bytes]() for name in names}
    left = list(names)
    while left:
        ours, theirs = FORKS.Pipe(duplex=False)
        process = FORKS.Process(target=work, args=(left, seconds, seed, theirs))
        process.start()
        theirs.close()
        name, tried, ended = left[0], b"", None
        while ended is None:
            try:
                what, value = ours.recv() if ours.poll(WAIT) else (name, None)
            except EOFError:
                process.join()
                what, value = name, None
            if what is None:
                counts[name] += 1
                if value is not None and place(value) not in map(place, faults[name]):
                    faults[name][value] = tried
            elif value is not None:
                for done in left[: left.index(what)]:
                    tell(done, counts[done], faults[done])
                left = left[left.index(what) :]
                name, tried = what, value
            else:
                ended = what
        if ended:
            code = process.exitcode
            faults[name]["hung, and could not be interrupted" if code is None else f"ended with {code}"] = tried
            process.kill()
        for done in left[: 1 if ended else None]:
            tell(done, counts[done], faults[done])
        left = left[1:] if ended else []
    return sum(counts.values()), sum(map(len, faults.values()))


def place(told: str) -> str:
    """What tells one fault from another: its kind and where it arose, not its words."""
    return told.partition(":")[0] + told.rpartition("(")[2]


def tell(name: str, count: int, faults: dict[str, bytes]) -> None:
    """Print what came of a parser, and keep what failed."""
    print("\n    ".join([f"{name}: {count:,} files, {len(faults)} faults", *faults]), flush=True)
    for content in faults.values():
        path = CORPUS / name / hashlib.sha256(content).hexdigest()[:12]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def main() -> None:
    """Fuzz the parsers that were named, or all."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--minutes", type=float, default=1, help="until all parsers are done")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("parsers", nargs="*", help="names; all by default")
    given = options.parse_args()
    names = given.parsers or list(PARSERS)
    if unknown := [name for name in names if name not in PARSERS]:
        sys.exit(f"there is no parser {unknown[0]}; choose from {', '.join(PARSERS)}")
    cores = min(os.cpu_count() or 1, len(names))
    shares = [names[core::cores] for core in range(cores)]
    with ThreadPoolExecutor(cores) as pool:
        done = pool.map(lambda share: fuzz(share, 60 * given.minutes / len(share), given.seed), shares)
    files, faults = map(sum, zip(*done, strict=True))
    print(f"{files:,} files, {faults} faults, {len(names)} parsers")
    sys.exit(faults > 0)


if __name__ == "__main__":
    main()
