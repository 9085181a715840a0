"""Beyond fakes: what else misled the audit, simulated, one line a situation.

`python tests/audit_sections.py 400` prints the second table of docs/audit_attacks.md: so many owners a line, arms of 20
pictures, a gap of 0.3, 399 permutations, seed 0, unless a line says otherwise.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from audit_attacks import AT_20, answers, audit, edited
from audit_simulation import C, R, U, View, World, findings, table, verdict_rates

from hf_unlearn.audit.statistics import TwoSample
from hf_unlearn.audit.verdict import run_tests, run_tests_by_owner
from hf_unlearn.records.audit_result import ImageRow, Verdict

BEST, PART, ACCUSED = Verdict.WITHIN_BAND, Verdict.RESIDUAL_SIGNAL, Verdict.NO_TARGETED_CHANGE
DRIFT = 0.055
Rates = Counter[Verdict]


def world_rates(world: World, owners: int, rng: np.random.Generator) -> Rates:
    """Verdicts with held-back views."""
    images = world.images(owners, rng)
    return verdict_rates(world.view(owners, rng, images), world.view(owners, rng, images))


def scenes(n: int, size: int, gap: float, owners: int, rng: np.random.Generator, *, known: bool) -> Rates:
    """Exact retraining where a plan parted scenes of alike pictures, whose twins keep all of the memory.

    Args:
        n: pictures in each half.
        size: pictures of one scene, half of them requested.
        gap: what training adds.
        owners: how many.
        rng: randomness.
        known: whether near-duplicates are known as such.
    """
    counts: Rates = Counter()
    for _ in range(owners):
        view = World({U: n, R: n, C: n}, gap=gap).view(1, rng)  # the twin in training keeps it: nothing is lost
        rows = table(view, 0)
        if known:
            rows = [row if row.arm is C else replace(row, cluster=f"{number(row) // (size // 2)}") for row in rows]
        counts[run_tests(rows, plan_sha256="ab", permutations=399, details=False).verdict] += 1
    return Counter({verdict: count / owners for verdict, count in counts.items()})


def number(row: ImageRow) -> int:
    return int(row.image.rsplit("-", 1)[1])


def several(count: int, batches: int, rng: np.random.Generator, left: float = 0.0) -> tuple[Rates, Rates]:
    """Verdicts of honest owners, and of one among them with a share of the memory left."""
    honest: Rates = Counter()
    faker: Rates = Counter()
    shared = World({C: 20, U: 20, R: 20}, gap=0.3, removed=1)
    for _ in range(batches):
        rows: list[ImageRow] = []
        for i in range(count):
            world = replace(shared, removed=1 - left) if i == 0 else shared
            images = world.images(1, rng)
            own = table(world.view(1, rng, images), 0, world.view(1, rng, images))
            rows += [replace(row, owner=f"{i:02}", image=f"{i}{row.image}", sha256=f"{i}{row.sha256}") for row in own]
        for owner, result in run_tests_by_owner(rows, permutations=399, details=False).items():
            (faker if owner == "00" and left else honest)[result.verdict] += 1
    return honest, faker


def coverage(n: int, m: int, owners: int, rng: np.random.Generator) -> tuple[float, float]:
    """A fifth of all pictures holds all the memory: how often an interval is given, and how often it then holds."""
    given = held = 0
    for _ in range(owners):
        treated = rng.normal(0, 0.04, n) + 0.3 * (rng.random(n) < 0.2)
        control = rng.normal(0, 0.04, m)
        test = TwoSample(treated, control, permutations=399)
        if test.shift_is_false():
            continue
        given += 1
        held += float(test.p_value("two-sided", 0.3 * 0.2)) > 0.05
    return given / owners, held / max(given, 1)


def uneven(planned: bool, n: int, owners: int, rng: np.random.Generator) -> float:
    """Credit for a request that was ignored while one style drifted more."""
    credited = 0
    world = World({U: n, R: n, C: n}, gap=0.3)
    for _ in range(owners):
        view = world.view(1, rng)
        style = np.repeat([DRIFT, 0.025], n)
        style = rng.permutation(style) if planned else style
        after = {U: view.after[U] - style[:n], R: view.after[R] - style[n:], C: view.after[C] - 0.04}
        credited += findings(View(view.before, after))[0].targeted
    return credited / owners


def served(owners: int, serve: Callable[[np.ndarray], np.ndarray]) -> float:
    """How often the untouched model, served otherwise, reads as unchanged."""
    same = 0
    for i in range(owners):
        world = answers(AT_20, np.random.default_rng([0, i]))
        everyone = np.ones(len(world.arms), bool)
        same += audit(world, edited(world.before, everyone, serve)).verdict is Verdict.NO_MODEL_CHANGE
    return same / owners


def main(owners: int) -> None:
    """Print the table, a line as soon as it is known."""
    rng = np.random.default_rng(0)

    def line(words: str, what: str, value: float) -> None:
        print(f"| {words} | {what} | {value:.3f} |", flush=True)

    print("| situation | share of | now |\n| --- | --- | --- |")
    for n, size in ((8, 4), (20, 10), (50, 10)):
        for gap in (0.1, 0.3):
            for known in (False, True):
                rates = scenes(n, size, gap, owners // 4, rng, known=known)
                told = "known" if known else "unknown"
                line(f"twins kept, {n} + {n} in scenes of {size}, gap {gap}, scenes {told}", "accused", rates[ACCUSED])
    for n in (12, 20, 50, 149):
        rates = world_rates(World({U: n, R: n, C: n}, gap=0.3, removed=0.8), max(owners // (1 + n // 50), 40), rng)
        line(f"a fifth of the memory left in each of {n} pictures", "best verdict", rates[BEST])
    for n in (9, 20, 50):
        rates = world_rates(World({U: n, R: n, C: n}, gap=0.3, removed=1, drift=DRIFT), owners, rng)
        for verdict in (BEST, PART, ACCUSED):
            line(f"exact retraining, {n} pictures", verdict.value, rates[verdict])
        rates = world_rates(World({U: n, R: n, C: n}, gap=0.3, drift=DRIFT), owners, rng)
        credit = sum(rates[v] for v in Verdict if v.value.startswith("TARGETED"))
        line(f"request ignored, the model drifts, {n} pictures", "credit", credit)
        line(f"one style drifts more, a plan, {n} pictures", "credit", uneven(True, n, owners, rng))
        line(f"one style drifts more, no plan, {n} pictures", "credit, conditional", uneven(False, n, owners, rng))
    for count in (1, 10, 30):
        honest, _ = several(count, max(owners // count // 2, 4), rng)
        total = sum(honest.values())
        line(f"exact retraining, {count} owners", "accused", honest[ACCUSED] / total)
        line(f"exact retraining, {count} owners", PART.value, honest[PART] / total)
    for count in (1, 10):
        _, faker = several(count, owners // 8, rng, left=0.3)
        line(f"three tenths left, among {count} owners", "best verdict", faker[BEST] / sum(faker.values()))
    for n, m in ((5, 5), (8, 8), (5, 50), (20, 20), (50, 50)):
        given, held = coverage(n, m, owners, rng)
        line(f"a fifth of {n} pictures holds all, {m} controls", "intervals given", given)
        line(f"a fifth of {n} pictures holds all, {m} controls", "of these, truth inside", held)
    ways = {"half precision": lambda x: x.astype(np.float16).astype(float), "times 1.001": lambda x: 1.001 * x}
    for words, serve in ways.items():
        line(f"untouched, {words}", "NO MODEL CHANGE", served(owners // 4, serve))


if __name__ == "__main__":
    main(int(sys.argv[1]))
