"""From both encoders' answers to one result an owner: the table, what counts as one picture, and the circumstances."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from hf_unlearn.audit.answer_checks import change, noise, suspicions
from hf_unlearn.audit.answer_jumps import checkable, units
from hf_unlearn.audit.audited_pictures import AuditedPictures
from hf_unlearn.audit.blind_baseline import told_apart
from hf_unlearn.audit.both_encoders import BothEncoders
from hf_unlearn.audit.clusters import answers_alike, connected, same_words
from hf_unlearn.audit.embeddings import Embeddings
from hf_unlearn.audit.plan import view_commitment
from hf_unlearn.audit.verdict import Circumstances, run_tests_by_owner
from hf_unlearn.records.audit_result import Arm, AuditResult, ImageRow

REDRAW_PERMUTATIONS = 499
DRAWS = 20
LONG = 1_000  # pictures from which fewer redraws are made
FEW_DRAWS = 6
_NOT_DRAWN = "The plan's halves are not those that its seed draws, unless near-duplicates were; it counts as chosen."
_OTHER_VIEWS = "The views are not those that the plan committed to: another seed was given."


def judge(measured: BothEncoders, provenance: Mapping[Arm, str]) -> dict[str, AuditResult]:
    """From both encoders' answers to one result an owner, with the share of redrawn views that agree."""
    pictures, settings = measured.pictures, measured.settings
    sides = {side: embeddings.take(range(len(pictures.pictures))) for side, embeddings in measured.sides.items()}
    clusters = _clusters(sides["before"], pictures)
    owners = sorted({owner for owner, arm in zip(pictures.owners, pictures.arms, strict=True) if arm is Arm.REQUESTED})
    how: dict[str, Any] = {
        "plan_sha256": pictures.plan.sha256 if pictures.plan else None,
        "provenance": provenance,
        "problems": _problems(sides),
        "circumstances": {owner: _circumstances(measured, clusters, owner) for owner in owners},
        "seed": settings.seed,
        "audits": settings.audits,
    }
    results = run_tests_by_owner(image_table(sides["before"], sides["after"], pictures, clusters), **how)
    how |= {"details": False, "permutations": REDRAW_PERMUTATIONS}
    draws, agreed = 0, Counter[str]()
    for before, after in _redraws(sides["before"], sides["after"], settings.seed or 0):
        again = run_tests_by_owner(image_table(before, after, pictures, clusters), **how)
        agreed.update(owner for owner in results if again[owner].verdict is results[owner].verdict)
        draws += 1
    return {
        owner: replace(result, stability=agreed[owner] / draws if draws else None) for owner, result in results.items()
    }


def _redraws(before: Embeddings, after: Embeddings, seed: int) -> Iterator[tuple[Embeddings, Embeddings]]:
    """Both sides with a random half of the views; none with too few views to halve, or where the sides differ in them.

    Such a half deviates from all views about as much as all of them do from the encoder's true mean, so verdicts on
    halves vary as verdicts on other draws of the views would.
    """
    if before.images.shape[1] != after.images.shape[1]:
        return
    for number in range(DRAWS if len(before.images) < LONG else FEW_DRAWS):
        # The same half of both: they were shown the same views.
        first, second = (side.half(np.random.default_rng([seed, number])) for side in (before, after))
        if first is None or second is None:
            return
        yield first, second


def image_table(
    before: Embeddings, after: Embeddings, pictures: AuditedPictures, clusters: np.ndarray
) -> list[ImageRow]:
    """Turn two encoders' answers into the per-image table that is tested, one row a picture.

    Args:
        before: Embeddings before.
        after: Embeddings after.
        pictures: The pictures.
        clusters: `[n]`, which pictures count as one.
    """
    columns = {"before": before.alignments(), "after": after.alignments(), "change": change(before, after)}
    if before.held_back is not None and after.held_back is not None:
        columns |= {
            "held_back_before": before.alignments(held_back=True),
            "held_back_after": after.alignments(held_back=True),
        }
    repeated = [noises for side in (before, after) if (noises := noise(side)) is not None]
    if len(repeated) == 2:
        columns["noise"] = (repeated[0] + repeated[1]) / 2
    sizes = np.bincount(clusters)
    return [
        ImageRow(
            image=picture.name,
            sha256=picture.sha256,
            arm=arm,
            owner=owner,
            cluster=f"cluster {clusters[i]}" if sizes[clusters[i]] > 1 else "",
            **{name: float(values[i]) for name, values in columns.items()},
        )
        for i, (picture, arm, owner) in enumerate(zip(pictures.pictures, pictures.arms, pictures.owners, strict=True))
    ]


def _clusters(before: Embeddings, pictures: AuditedPictures) -> np.ndarray:
    """Pictures that look alike, or that the encoder took for one before the change."""
    edges = same_words([str(number) for number in pictures.clusters])
    if before.original_first:
        edges = edges + answers_alike(np.asarray(before.images[:, 0]))
    return connected(len(pictures.pictures), edges)


def _circumstances(measured: BothEncoders, clusters: np.ndarray, owner: str) -> Circumstances:
    """What one owner must know besides the tests: answers no training gives, arms told apart without a model."""
    pictures = measured.pictures
    n, decoys = len(pictures.pictures), len(pictures.decoys)
    mine = [i for i in range(n) if pictures.owners[i] in ("", owner)]
    requested = [i for i in mine if pictures.arms[i] is Arm.REQUESTED and pictures.owners[i] == owner]
    others = [i for i in mine if pictures.arms[i] is not Arm.REQUESTED] + list(range(n, n + decoys))
    everyone = np.concatenate([clusters, n + np.arange(decoys)])
    before, after = measured.sides["before"], measured.sides["after"]
    found = suspicions(before, after, requested, others, everyone)
    incomparable, remarks = [], []
    drawn = {Arm.REQUESTED} | ({Arm.STILL_TRAINED} if pictures.plan is not None else set())  # a plan made these alike
    compared = {arm: [i for i in mine if pictures.arms[i] is arm] for arm in Arm if arm not in drawn}
    compared = {arm: rows for arm, rows in compared.items() if rows}
    for arm, rows in compared.items():
        mine_once, theirs = (
            [pictures.pictures[i] for i in _one_a_cluster(some, clusters)] for some in (requested, rows)
        )
        share = told_apart(mine_once, theirs, measured.settings.seed or 0, comparisons=len(compared))
        if share is None:
            continue
        sentence = (
            f"The requested pictures and those {arm.words} can be told apart without any model ({share:.0%} of pairs "
            "put in order by colours, sizes or file types alone): "
        )
        if arm is Arm.NEVER_TRAINED:
            incomparable.append(sentence + "their levels cannot be compared; take controls of the same source.")
        else:
            remarks.append(sentence + "a model may treat the two kinds differently whatever was requested.")
    plan = pictures.plan
    seed = measured.settings.seed
    if plan is not None and plan.view_commitments and seed is not None:
        remarks += [_OTHER_VIEWS] * (view_commitment(seed) not in plan.view_commitments)
    from_weights = after.source.get("kind") == "checkpoint"
    follows = plan is None or plan.follows_its_seed()
    remarks += [] if follows else [_NOT_DRAWN]
    checked = checkable(units(requested, others, everyone))
    return Circumstances(found, tuple(incomparable), tuple(remarks), from_weights, checked, follows)


def _one_a_cluster(rows: Sequence[int], clusters: np.ndarray) -> list[int]:
    """The first of each cluster's pictures: near-duplicates would count many times, one by one."""
    return sorted({int(clusters[i]): i for i in reversed(rows)}.values())


def _problems(measured: Mapping[str, Embeddings]) -> list[str]:
    """Faults of the whole measurement; a fault of single pictures is left to the tests, which know whose they are."""
    before, after = measured["before"], measured["after"]
    found = [sentence for side, e in measured.items() if (sentence := e.collapse(f"The model {side}"))]
    for what, left, right in (
        ("views a picture", before.images.shape[1], after.images.shape[1]),
        ("captions", _captions(before), _captions(after)),
    ):
        if left != right:
            found.append(f"The model before gives {left} {what}, the model after {right}: they cannot be compared.")
    return found


def _captions(embeddings: Embeddings) -> int:
    return 0 if embeddings.texts is None else len(embeddings.texts)
