"""Beyond fakes: what else misled the audit, simulated, one line a situation.

`python tests/audit_sections.py 20000` prints the second and third table of docs/audit_attacks.md: arms of 20 pictures,
a gap of 0.3, 599 permutations, seed 0, unless a line says otherwise.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from audit_answers import AT_20, answers, edited
from audit_attacks import audit
from audit_simulation import DRAWS, UNTOUCHED, C, R, U, View, World, findings, table, untouched_rates, verdict_rates
from scipy.stats import binomtest

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


def scenes(
    n: int, size: int, gap: float, owners: int, rng: np.random.Generator, *, known: bool, parted: float = 1.0
) -> Rates:
    """Exact retraining where a plan parted scenes of alike pictures, whose twins keep all of the memory.

    Args:
        n: pictures in each half.
        size: pictures of one scene, half of them requested.
        gap: what training adds.
        owners: how many.
        rng: randomness.
        known: whether near-duplicates are known as such.
        parted: share of the requested pictures with a twin in training; the rest are gone.
    """
    counts: Rates = Counter()
    world = World({U: n, R: n, C: n}, gap=gap, removed=1)
    twins, images = round(parted * n), world.images(owners, rng)
    audited, held_back = (world.view(owners, rng, images) for _ in range(2))
    for view in (audited, held_back):
        view.after[U][:, :twins] += gap
    for owner in range(owners):
        rows = table(audited, owner, held_back)
        if known:
            rows = [
                row if row.arm is C or number(row) >= twins else replace(row, cluster=f"{number(row) // (size // 2)}")
                for row in rows
            ]
        counts[run_tests(rows, plan_sha256="ab", permutations=DRAWS, details=False).verdict] += 1
    return counts


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
        for owner, result in run_tests_by_owner(rows, permutations=DRAWS, details=False).items():
            (faker if owner == "00" and left else honest)[result.verdict] += 1
    return honest, faker


def coverage(n: int, m: int, owners: int, rng: np.random.Generator) -> tuple[int, int]:
    """A fifth of all pictures holds all the memory: to how many owners an interval is given, and how many hold."""
    given = held = 0
    for _ in range(owners):
        treated = rng.normal(0, 0.04, n) + 0.3 * (rng.random(n) < 0.2)
        control = rng.normal(0, 0.04, m)
        test = TwoSample(treated, control, permutations=DRAWS)
        if test.shift_is_false():
            continue
        given += 1
        held += bool(test.p_value("two-sided", 0.3 * 0.2) > 0.05)
    return given, held


def uneven(planned: bool, n: int, owners: int, rng: np.random.Generator) -> int:
    """How many owners get credit for a request that was ignored while one style drifted more."""
    view = World({U: n, R: n, C: n}, gap=0.3).view(owners, rng)
    style = np.tile(np.repeat([DRIFT, 0.025], n), (owners, 1))
    style = rng.permuted(style, axis=1) if planned else style
    after = {U: view.after[U] - style[:, :n], R: view.after[R] - style[:, n:], C: view.after[C] - 0.04}
    return sum(found.targeted for found in findings(View(view.before, after)))


def served(owners: int, serve: Callable[[np.ndarray], np.ndarray]) -> int:
    """How often the untouched model, served otherwise, reads as unchanged."""
    same = 0
    for i in range(owners):
        world = answers(AT_20, np.random.default_rng([0, i]))
        everyone = np.ones(len(world.arms), bool)
        same += audit(world, edited(world.before, everyone, serve)).verdict is Verdict.NO_MODEL_CHANGE
    return same


def rates_at(sizes: tuple[int, ...], owners: int, rng: np.random.Generator) -> None:
    """Drift and exact retraining at so many pictures an arm, thousands of owners at a time."""
    for n in sizes:
        arms = {U: n, R: n, C: n}
        rates = world_rates(World(arms, gap=0.3, removed=1, drift=DRIFT), owners, rng)
        for verdict in (BEST, PART, ACCUSED):
            line(f"exact retraining, {n} pictures", verdict.value, rates[verdict] * owners, owners)
        rates = world_rates(World(arms, gap=0.3, drift=DRIFT), owners, rng)
        credit = sum(rates[v] for v in Verdict if v.value.startswith("TARGETED"))
        line(f"request ignored, the model drifts, {n} pictures", "credit", credit * owners, owners)
        line(f"one style drifts more, a plan, {n} pictures", "credit", uneven(True, n, owners, rng), owners)
        line(f"one style drifts more, no plan, {n} pictures", "credit, if alike", uneven(False, n, owners, rng), owners)


def line(words: str, what: str, count: float, trials: int) -> None:
    """One line of the table: a share with its 95% interval (Clopper and Pearson)."""
    seen = binomtest(round(count), trials).proportion_ci()
    print(f"| {words} | {what} | {count / trials:.4f} | {seen.low:.4f} to {seen.high:.4f} | {trials} |", flush=True)


def main(owners: int) -> None:
    """Print the table, a line as soon as it is known; what is simulated one by one gets a tenth of the owners."""
    rng, few = np.random.default_rng(0), owners // 10
    print("| situation | share of | now | 95% interval | owners |\n| --- | --- | --- | --- | --- |")
    rates_at((9, 20, 50), owners, rng)
    for count in (1, 10, 30):
        honest, _ = several(count, few // count, rng)
        for verdict in (BEST, PART, ACCUSED):
            line(f"exact retraining, {count} owners", verdict.value, honest[verdict], sum(honest.values()))
    for count in (1, 10):
        _, faker = several(count, few // 10, rng, left=0.3)
        line(f"three tenths left, among {count} owners", "best verdict", faker[BEST], sum(faker.values()))
    for parted in (0.3, 1.0):
        for n, size in ((8, 4), (20, 10), (50, 10)):
            for known in (False, True):
                rates = scenes(n, size, 0.3, few // 4, rng, known=known, parted=parted)
                told = f"{parted:g} of {n} + {n} have twins, scenes of {size}, {'' if known else 'un'}known"
                for verdict in (PART, ACCUSED):
                    line(told, verdict.value, rates[verdict], few // 4)
    for n in (12, 20, 50, 149):
        some = owners // (10 + n // 5)
        rates = world_rates(World({U: n, R: n, C: n}, gap=0.3, removed=0.8), some, rng)
        line(f"a fifth of the memory left in each of {n} pictures", "best verdict", rates[BEST] * some, some)
    for (n, count), before in UNTOUCHED.items():
        some = owners // (10 + n // 5)
        rates = untouched_rates(n, count, some, rng)
        line(f"{count} of {n} left alone (before: {before})", "best verdict", rates[BEST] * some, some)
    for n, m in ((5, 5), (8, 8), (5, 50), (20, 20), (50, 50)):
        given, held = coverage(n, m, few, rng)
        line(f"a fifth of {n} pictures holds all, {m} controls", "intervals given", given, few)
        line(f"a fifth of {n} pictures holds all, {m} controls", "of these, truth inside", held, max(given, 1))
    ways = {"half precision": lambda x: x.astype(np.float16).astype(float), "times 1.001": lambda x: 1.001 * x}
    for words, serve in ways.items():
        line(f"untouched, {words}", "NO MODEL CHANGE", served(few // 10, serve), few // 10)


if __name__ == "__main__":
    main(int(sys.argv[1]))
