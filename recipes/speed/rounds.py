"""What is timed, in turns: settings, rounds, rows of the table."""

import ctypes
import json
import math
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch

Work = Callable[[], Any]


@dataclass(frozen=True)
class Setting:
    """Where and how large the benchmark is."""

    device: torch.device
    small: bool
    repeats: int
    workers: int
    compiled: bool = False
    clock: Callable[[], float] = time.perf_counter
    deadline: float = math.inf

    @property
    def cuda(self) -> bool:
        """Whether it runs on a GPU."""
        return self.device.type == "cuda"

    @property
    def pictures(self) -> int:
        """Pictures of a batch; SimCLR and MoCo see two views of each."""
        return 16 if self.small else 256

    @property
    def calls(self) -> int:
        """Calls that are timed as one: on a GPU several, for the host runs ahead of it."""
        return 10 if self.cuda and not self.small else 1

    @property
    def first_calls(self) -> int:
        """Calls before any is timed: kernels are chosen and compiled in the first, CUDA graphs recorded in the next."""
        return 4 if self.cuda or self.compiled else 1

    @property
    def seconds_left(self) -> float:
        """Until no further row is begun."""
        return self.deadline - time.monotonic()


@dataclass(frozen=True)
class Measurement:
    """One round of one contender: seconds, and peak memory above where it started, in MB."""

    seconds: float
    peak: float


@dataclass(frozen=True)
class Row:
    """A line of the table: one way to do the work against another; times in seconds, peaks in MB."""

    work: str
    first: str
    second: str
    first_seconds: float
    second_seconds: float
    ratio: float
    least: float
    greatest: float
    first_peak: float
    second_peak: float
    note: str = ""

    @classmethod
    def of(
        cls, work: str, first: str, second: str, taken: list[Measurement], other: list[Measurement], note: str = ""
    ) -> Self:
        """The rounds of one way to do the work against those of another."""
        (first_seconds, first_peak), (second_seconds, second_peak) = (
            (statistics.median(m.seconds for m in rounds), statistics.median(m.peak for m in rounds))
            for rounds in (taken, other)
        )
        ratios = [b.seconds / a.seconds for a, b in zip(taken, other, strict=True)]
        ratio, least, greatest = statistics.median(ratios), min(ratios), max(ratios)
        seconds = (first_seconds, second_seconds)
        return cls(work, first, second, *seconds, ratio, least, greatest, first_peak, second_peak, note)

    def __str__(self) -> str:
        times = f"{_seconds(self.first_seconds)} against {_seconds(self.second_seconds)}"
        ratio = f"ratio {self.ratio:.2f} ({self.least:.2f} to {self.greatest:.2f})"
        peaks = f"peak {self.first_peak:.0f} against {self.second_peak:.0f} MB"
        details = "; ".join(part for part in (f"{times}, {ratio}", peaks, self.note) if part)
        return f"{self.work}: {self.first} against {self.second}\n    {details}"


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 1 else f"{1e3 * value:.3g} ms"


class Rounds:
    """What every contender took, round by round.

    Attributes:
        contenders: the ways to do the work, by name; those whose first calls no time was left for are not among them.
        begun: seconds of each one's first calls, compilation among them.
        taken: what a call took, in each round.

    Args:
        setting: where, and how often.
        contenders: the ways to do the work, the more important ones first.
        unclocked: calls before a round's clock starts: as many as a loader may have prepared while others ran.
    """

    def __init__(self, setting: Setting, contenders: dict[str, Work], unclocked: dict[str, int] | None = None) -> None:
        self.contenders: dict[str, Work] = {}
        self.begun: dict[str, float] = {}
        for name, work in contenders.items():
            if len(self.contenders) > 1 and setting.seconds_left < 0:
                break
            self.contenders[name] = work
            started = time.perf_counter()
            for _ in range(setting.first_calls):
                work()
            if setting.cuda:
                torch.cuda.synchronize()
            self.begun[name] = time.perf_counter() - started
        self.taken: dict[str, list[Measurement]] = {name: [] for name in self.contenders}
        for done in range(setting.repeats):
            if done and setting.seconds_left < 0:
                break
            for name, work in self.contenders.items():
                for _ in range((unclocked or {}).get(name, 0)):
                    work()
                self.taken[name].append(measure(setting.device, work, setting.clock, setting.calls))

    def seconds(self, name: str) -> float:
        """Median of a contender."""
        return statistics.median(m.seconds for m in self.taken[name])

    def compare(self, work: str, first: str, second: str, note: str = "") -> Row:
        """One contender against another; both must have been timed."""
        return Row.of(work, first, second, self.taken[first], self.taken[second], note)


def measure(
    device: torch.device, work: Work, clock: Callable[[], float] = time.perf_counter, calls: int = 1
) -> Measurement:
    """Read clock and memory around some calls; seconds are of one, with the device done with all of them."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() / 2**20
        started = clock()
        for _ in range(calls):
            work()
        torch.cuda.synchronize()
        return Measurement((clock() - started) / calls, torch.cuda.max_memory_allocated() / 2**20 - before)
    if platform.system() == "Linux":
        ctypes.CDLL(None).malloc_trim(0)  # or memory that an earlier round gave back would hide this one's
        Path("/proc/self/clear_refs").write_text("5")  # starts the peak anew
    before = _process_memory("VmRSS")
    started = clock()
    for _ in range(calls):
        work()
    return Measurement((clock() - started) / calls, _process_memory("VmHWM") - before)


def _process_memory(field: str) -> float:
    if platform.system() != "Linux":
        return float("nan")
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))


def matrix_rate(setting: Setting, dtype: torch.dtype, size: int) -> float:
    """The hardware's floating-point operations a second, as the best of several square matrix products."""
    left, right = (torch.randn(size, size, device=setting.device, dtype=dtype) for _ in range(2))
    best = min(measure(setting.device, lambda: left @ right, setting.clock).seconds for _ in range(8))
    return 2 * size**3 / best


def growth(setting: Setting, work: str, unit: str, scripts: dict[int, list[str]]) -> Iterator[Row]:
    """How seconds and peak memory grow with the size of the work, each measured in processes of its own.

    Args:
        setting: how often.
        work: what is done.
        unit: what sizes count.
        scripts: for each size, a script that prints both as JSON, and its arguments.
    """
    taken: dict[int, list[Measurement]] = {}
    for size, script in scripts.items():
        command = [sys.executable, "-c", *script]
        runs = [subprocess.run(command, capture_output=True, text=True, check=True) for _ in range(setting.repeats)]
        taken[size] = [Measurement(*json.loads(run.stdout)) for run in runs]
    smallest, first = next(iter(taken.items()))
    for size, each in taken.items():
        yield Row.of(work, f"{smallest:,} {unit}", f"{size:,} {unit}", first, each)
