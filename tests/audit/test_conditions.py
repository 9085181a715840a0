"""What an audit takes for granted, said in its first line: arms that an owner chose, and plans that an owner chose."""

from collections import Counter
from dataclasses import replace

import numpy as np
from audit.conftest import folder_of
from audit.test_acceptance import assert_at_most
from audit_simulation import DRAWS, C, R, U, World, table

from hf_unlearn.audit.audited_pictures import collect_pictures
from hf_unlearn.audit.headlines import ALIKE, FROM_THE_MODEL, NOT_OF_EVERYTHING, SAME_KIND, UNEVEN
from hf_unlearn.audit.recording import plan_audit
from hf_unlearn.audit.verdict import run_tests
from hf_unlearn.records.audit_result import Verdict

PART = Verdict.RESIDUAL_SIGNAL


def test_a_plan_says_nothing_of_pictures_never_in_training() -> None:
    """Controls that are harder by 0.1 read as a trace that exact retraining left; the first line says what it takes."""
    rng = np.random.default_rng(1)
    rows = table(World({U: 20, R: 20, C: 20}, gap=0.3, removed=1, content=0.1).view(1, rng), 0)
    planned = run_tests(rows, plan_sha256="ab", permutations=DRAWS)
    assert planned.verdict is PART and f"if {SAME_KIND} and {FROM_THE_MODEL}: " in planned.headline
    assert ALIKE in run_tests(rows, permutations=DRAWS).headline


def test_a_general_loss_is_named_where_nothing_still_in_training_is_compared() -> None:
    world = World({U: 20, C: 20}, gap=0.3, removed=0.15, kept=0.85)
    result = run_tests(table(world.view(1, np.random.default_rng(0)), 0), permutations=DRAWS)
    assert result.verdict is PART and NOT_OF_EVERYTHING in result.headline
    beside = replace(world, sizes={U: 20, R: 20, C: 20}, removed=1.0)
    rows = table(beside.view(1, np.random.default_rng(0)), 0)
    assert NOT_OF_EVERYTHING not in run_tests(rows, permutations=DRAWS).headline


def test_a_plan_that_was_chosen_among_many_counts_as_chosen() -> None:
    """Halves whose levels differ before are seldom drawn by chance, and often found by trying seeds."""
    counts: Counter[bool] = Counter()
    rng = np.random.default_rng(2)
    for _ in range(40):
        rows = table(World({U: 20, R: 20, C: 20}, gap=0.3, removed=1).view(1, rng), 0)
        result = run_tests(rows, plan_sha256="ab", permutations=199, details=False)
        assert (ALIKE in result.headline) == (UNEVEN in result.findings)
        counts[UNEVEN in result.findings] += 1
    assert_at_most(counts[True], 40, 0.05)
    members = sorted((row for row in rows if row.arm is not C), key=lambda row: -row.before)
    picked = [replace(row, arm=U if i < 20 else R) for i, row in enumerate(members)] + [r for r in rows if r.arm is C]
    assert UNEVEN in run_tests(picked, plan_sha256="ab", permutations=199, details=False).findings


def test_what_a_plan_drew_as_one_counts_as_one(tmp_path) -> None:
    """Also where the audit is not told the groups again."""
    folder = folder_of(tmp_path / "mine", 6)
    names = sorted(path.name for path in folder.iterdir())
    groups = tmp_path / "groups.csv"
    groups.write_text("image,group\n" + "".join(f"{name},{'a' if i < 3 else ''}\n" for i, name in enumerate(names)))
    plan_audit(folder, tmp_path / "plan", seed=1, captions=groups)
    pictures = collect_pictures(folder, plan=tmp_path / "plan" / "plan.json")
    numbers = dict(zip(pictures.names, pictures.clusters, strict=True))
    assert len({numbers[name] for name in names[:3]}) == 1 and len(set(numbers.values())) == 4
