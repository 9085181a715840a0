"""Check a published model against its own records: what holds, what does not, and what cannot be checked from here."""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from hf_unlearn.errors import UserError
from hf_unlearn.files import read_text
from hf_unlearn.hub.card import hash_files, hub_identifier, is_adapter, render_card
from hf_unlearn.hub.card_check import verify_card
from hf_unlearn.hub.download import fetch
from hf_unlearn.hub.verification_report import Outcome, Statement, VerificationReport, judged
from hf_unlearn.models.weights import ADAPTER_CONFIG_NAME, has_weights, weights_sha256
from hf_unlearn.records.file_names import (
    AUDIT_NAME,
    CARD_NAME,
    EVALUATION_NAME,
    MANIFEST_NAME,
    PUBLISHED,
    foreign_files,
    is_foreign,
)
from hf_unlearn.records.metric_labels import gap_keys
from hf_unlearn.records.schemas import (
    BaseModel,
    ComparisonRow,
    EvaluationRecord,
    Matrices,
    RequestRecord,
    UnlearningManifest,
    refuse_earlier_name,
)

_SHA256 = re.compile(r"[0-9a-f]{64}")
RETRAIN = "retrain"  # the method's id
_TOLERANCE = 1e-5  # the matrices are stored with six decimals


@dataclass(frozen=True)
class OwnedSample:
    """A picture, and its captions where the model was trained on pairs, that its owner asks about."""

    image: Path
    captions: tuple[str, ...] = ()


def verify_repo(
    repo_or_dir: str | Path,
    *,
    revision: str | None = None,
    base: str | Path | None = None,
    request: str | Path | None = None,
    salt: str | None = None,
    samples: Sequence[OwnedSample] = (),
    token: str | None = None,
) -> VerificationReport:
    """Check a model on the Hub, or in a folder, against its `unlearning.json`, `evaluation.json` and card.

    Args:
        repo_or_dir: A Hub id, or a folder.
        revision: A branch, tag or commit on the Hub.
        base: The base model's folder, to check its hash as well.
        request: The file with the requested ids, to check the hash of an unsalted request.
        salt: The salt of the request, from the model's owner.
        samples: The data owner's own samples, to be looked for in the request; needs `salt`.
        token: A token that can read a private repository.

    Returns:
        One line a statement.

    Raises:
        UserError: There is no such model, or it has no `unlearning.json` to check against, or samples were given
            without a salt.
    """
    if samples and salt is None:
        raise UserError("Looking for your samples in the request needs its salt: give --salt, from the model's owner.")
    local = Path(repo_or_dir).is_dir()
    folder = Path(repo_or_dir) if local else fetch(str(repo_or_dir), (*PUBLISHED, AUDIT_NAME), revision, token)
    refuse_earlier_name(folder)
    manifest = UnlearningManifest.load(folder)
    statements = list(verify_folder(folder, manifest))
    if local:
        statements.append(_other_files(foreign_files(folder)))
    else:
        statements += _repository(str(repo_or_dir), manifest, folder.name, token)
    statements += _base_weights(manifest, base)
    if request is not None:
        statements.append(_requested_ids(manifest.request, request))
    statements += _owned_samples(manifest.request, salt, samples)
    statements.append(
        Statement("data", Outcome.UNCHECKED, "the training data and its SHA-256 are not part of the repository")
    )
    statements.append(Statement("training", Outcome.UNCHECKED, "weights do not show which data they were trained on"))
    return VerificationReport(str(repo_or_dir), tuple(statements))


def check_card(folder: str | Path) -> tuple[Statement, ...]:
    """Check that a card, regenerated from its records, is the same, and that the files beside it are the recorded ones.

    Args:
        folder: A finished run's, or one that keeps `README.md`, `unlearning.json`, `evaluation.json` and `assets/*.png`
            without the weights, as in `model_cards/`.

    Returns:
        What does not hold; empty for a card that nobody edited by hand.

    Raises:
        UserError: A record is missing or not valid.
    """
    folder = Path(folder)
    manifest = UnlearningManifest.load(folder)
    evaluation = EvaluationRecord.load(folder)
    whole = has_weights(folder)
    weights = (_weights(folder, manifest),) if whole else ()
    recorded = {name: sha256 for name, sha256 in manifest.files.items() if whole or _is_kept(name)}
    lines = [
        *weights,
        *_files(folder, recorded),
        *_evaluation(evaluation, manifest),
        *verify_card(folder, manifest, evaluation),
    ]
    failures = [line for line in lines if line.fails]
    if not failures and read_text(folder / CARD_NAME) != render_card(manifest, evaluation):
        failures.append(Statement("card", Outcome.FAILS, "this version would write it otherwise; write it again"))
    return tuple(failures)


def _is_kept(name: str) -> bool:
    return name == EVALUATION_NAME or name.startswith("assets/")


def verify_folder(folder: Path, manifest: UnlearningManifest) -> Iterator[Statement]:
    """Check the files of one folder against each other."""
    yield _weights(folder, manifest)
    yield from _files(folder, manifest.files)
    if is_adapter(manifest):
        yield _adapter_base(folder, manifest.base_model)
    yield from _manifest_form(manifest)
    yield from _history(manifest)
    evaluation = _readable_evaluation(folder)
    if isinstance(evaluation, Statement):
        yield evaluation
        return
    if evaluation is not None:
        yield from _evaluation(evaluation, manifest)
    yield from verify_card(folder, manifest, evaluation)


def _weights(folder: Path, manifest: UnlearningManifest) -> Statement:
    try:
        actual = weights_sha256(folder)
    except UserError as error:
        # Two kinds of weights side by side, or a shard missing, is a fault; no weights at all, a kept card.
        return Statement("weights", Outcome.FAILS if has_weights(folder) else Outcome.UNCHECKED, str(error))
    same = actual == manifest.weights_sha256
    return judged("weights", same, f"SHA-256 {actual}", f"SHA-256 is {actual}, recorded {manifest.weights_sha256}")


def _adapter_base(folder: Path, base: BaseModel) -> Statement:
    """Check that an adapter's config sends its reader to the base model that the records name."""
    try:
        config = json.loads((folder / ADAPTER_CONFIG_NAME).read_text(encoding="utf-8"))
        named, revision = config["base_model_name_or_path"], config["revision"]
    except (OSError, ValueError, KeyError, TypeError):
        return Statement("adapter's base", Outcome.FAILS, f"{ADAPTER_CONFIG_NAME} names none")
    here = base.revision is None and Path(str(named)).is_absolute() and Path(str(named)).name == base.name_or_path
    same = here or (named, revision) == (hub_identifier(base.name_or_path, base.revision), base.revision)
    problem = f"is {named} at revision {revision}, recorded {base.name_or_path} at {base.revision}"
    return judged("adapter's base", same, "the recorded base model", problem)


def _files(folder: Path, recorded: Mapping[str, str]) -> Iterator[Statement]:
    actual = hash_files(folder)
    for name in sorted({*actual, *recorded}):
        if name not in recorded:
            yield Statement(name, Outcome.FAILS, f"is not recorded in {MANIFEST_NAME}")
        elif name not in actual:
            yield Statement(name, Outcome.FAILS, "is recorded but missing")
        else:
            problem = f"SHA-256 is {actual[name]}, recorded {recorded[name]}"
            yield judged(name, actual[name] == recorded[name], "SHA-256 as recorded", problem)


def _manifest_form(manifest: UnlearningManifest) -> Iterator[Statement]:
    hashes = {
        "weights_sha256": manifest.weights_sha256,
        "base_model.sha256": manifest.base_model.sha256,
        "dataset.sha256": manifest.dataset.sha256,
    }
    malformed = [name for name, value in hashes.items() if value is not None and not _SHA256.fullmatch(value)]
    yield judged(f"{MANIFEST_NAME}: hashes", not malformed, "well formed", f"not a SHA-256: {', '.join(malformed)}")
    yield _request("request", manifest.request)
    for number, entry in enumerate(manifest.history, start=1):
        yield _request(f"request of run {number}", entry.request)
    unlearn, count = manifest.splits.get("unlearn", 0), manifest.request.count
    yield judged(
        f"{MANIFEST_NAME}: counts",
        0 < count <= unlearn and all(rows >= 0 for rows in manifest.splits.values()),
        f"{count} requested, {unlearn} in the unlearn split",
        f"{count} requested, but {unlearn} in the unlearn split",
    )
    recorded = manifest.versions.get("hf-unlearn") or manifest.library_version
    yield judged(
        f"{MANIFEST_NAME}: versions",
        bool(manifest.versions) and recorded == manifest.library_version,
        f"recorded for {len(manifest.versions)} libraries; that the run used them cannot be seen",
        f"hf_unlearn is {manifest.library_version} in one place and {recorded} in the other"
        if manifest.versions
        else "no library version is recorded",
    )


def _request(subject: str, request: RequestRecord) -> Statement:
    from hf_unlearn.data.fingerprint import combine_hashes

    if not _SHA256.fullmatch(request.sha256):
        return Statement(subject, Outcome.FAILS, f"its hash is no SHA-256: {request.sha256}")
    if request.row_hashes is None:
        return Statement(subject, Outcome.UNCHECKED, f"SHA-256 {request.sha256} of what only the owners hold")
    if not request.salted:
        return Statement(subject, Outcome.FAILS, "its row hashes are published without a salt and can be guessed")
    if len(request.row_hashes) != request.count:
        return Statement(subject, Outcome.FAILS, f"{len(request.row_hashes)} row hashes for {request.count} samples")
    combined = combine_hashes(request.row_hashes)
    problem = f"its rows combine to SHA-256 {combined}, recorded {request.sha256}: a row was changed"
    return judged(subject, combined == request.sha256, f"{request.count} row hashes combine to its SHA-256", problem)


def _history(manifest: UnlearningManifest) -> Iterator[Statement]:
    if not manifest.history:
        return
    runs = [*manifest.history, manifest.as_history_entry()]
    problems = []
    for number, (earlier, later) in enumerate(pairwise(runs), start=2):
        if later.base_sha256 != earlier.weights_sha256:
            problems.append(f"run {number} did not start from the weights of run {number - 1}")
        if later.created < earlier.created:  # ISO 8601 in UTC sorts as text
            problems.append(f"run {number} is dated before run {number - 1}")
    yield judged("history", not problems, f"{len(runs)} runs, each from the weights of the last", "; ".join(problems))


def _readable_evaluation(folder: Path) -> EvaluationRecord | Statement | None:
    try:
        return EvaluationRecord.load_if_evaluated(folder)
    except UserError as error:
        return Statement(EVALUATION_NAME, Outcome.FAILS, str(error))


def _evaluation(evaluation: EvaluationRecord, manifest: UnlearningManifest) -> Iterator[Statement]:
    """Check that the evaluation is of these weights, and that its figures follow from each other."""
    if evaluation.weights_sha256 is not None:
        same = evaluation.weights_sha256 == manifest.weights_sha256
        yield judged(
            f"{EVALUATION_NAME}: weights", same, "measured these", f"it measured weights {evaluation.weights_sha256}"
        )
    keys = (
        gap_keys(evaluation.family, evaluation.metrics) if evaluation.gap_keys or evaluation.retrain is not None else ()
    )
    due, found = ", ".join(keys) or "nothing", ", ".join(evaluation.gap_keys) or "nothing"
    yield judged(
        f"{EVALUATION_NAME}: gap", evaluation.gap_keys == keys, f"over {due}", f"is over {found}, and should be {due}"
    )
    yield _agrees(
        f"{EVALUATION_NAME}: average gap",
        evaluation.avg_gap,
        _average_gap(evaluation.metrics, evaluation.retrain, keys),
    )
    scores = evaluation.per_sample.get("forgetting_score", ())
    known = [score for score in scores if score is not None]
    recorded = evaluation.metrics.get("forgetting_score")
    if known and recorded is not None and len(known) == len(scores):
        yield _agrees(f"{EVALUATION_NAME}: forgetting score", recorded, 100 * sum(known) / len(known))
    if evaluation.matrices is not None:
        yield from _matrices(evaluation.matrices, scores, evaluation.family)
    problems = [
        problem for row in evaluation.comparison for problem in _row_problems(row, evaluation, manifest.method, keys)
    ]
    if evaluation.comparison:
        fine = f"{len(evaluation.comparison)} rows, whose gaps follow from their figures and Retrain's"
        yield judged(f"{EVALUATION_NAME}: comparison", not problems, fine, "; ".join(problems))


Metrics = Mapping[str, float | None]


def _average_gap(metrics: Metrics, retrain: Metrics | None, keys: Sequence[str]) -> float | None:
    """Mean absolute difference to Retrain; None without Retrain, or where a figure is missing or not finite."""
    gaps = [_difference(metrics.get(key), (retrain or {}).get(key)) for key in keys]
    known = [gap for gap in gaps if gap is not None]
    return math.fsum(known) / len(known) if known and len(known) == len(gaps) else None


def _row_problems(row: ComparisonRow, evaluation: EvaluationRecord, method: str, keys: Sequence[str]) -> Iterator[str]:
    """What is wrong in a row: figures other than those of the column with its name, or a gap that does not follow.

    Retrain's own row may leave its gap out, which is zero.
    """
    columns: dict[str, Metrics] = {
        "before": evaluation.before or {},
        RETRAIN: evaluation.retrain or {},
        method: evaluation.metrics,
    }
    if row.method in columns:
        column = columns[row.method]
        shown = dict.fromkeys((*keys, "run_time_minutes", *row.metrics))
        if differing := [key for key in shown if not _close(row.metrics.get(key), column.get(key))]:
            yield f"{', '.join(differing)} of {row.method} differ from its figures above"
    if row.method == RETRAIN and not row.gap and row.avg_gap is None:
        return
    gaps = {key: _difference(row.metrics.get(key), (evaluation.retrain or {}).get(key)) for key in keys}
    wrong = [key for key in dict.fromkeys((*keys, *row.gap)) if not _close(row.gap.get(key), gaps.get(key))]
    if wrong:
        yield f"the gap of {row.method} in {', '.join(wrong)} does not follow"
    if not _close(row.avg_gap, _average_gap(row.metrics, evaluation.retrain, keys)):
        yield f"the average gap of {row.method} is {row.avg_gap}, and does not follow"


def _matrices(am: Matrices, scores: Sequence[float | None], family: str) -> Iterator[Statement]:
    """Check that the matrices have one shape and that AGM follows from the other two, and look at its diagonal."""
    subject = f"{EVALUATION_NAME}: matrices"
    count = len(am.agm)
    square = all(
        len(matrix) == count and all(len(row) == count for row in matrix)
        for matrix in (am.am_before, am.am_after, am.agm)
    )
    if not square or len(am.labels) not in (0, count):
        yield Statement(subject, Outcome.FAILS, "AM before, AM after, AGM and their labels differ in size")
        return
    wrong = [
        f"agm[{i}][{j}]"
        for i, rows in enumerate(zip(am.am_before, am.am_after, am.agm, strict=True))
        for j, (before, after, gap) in enumerate(zip(*rows, strict=True))
        if not _close(gap, None if before is None or after is None else before - after)
    ]
    yield judged(subject, not wrong, "AGM is AM before minus AM after", f"differs at {wrong}")
    if family == "image-text" and am.agm and scores:
        diagonal = [row[i] for i, row in enumerate(am.agm)]
        same = len(scores) >= count and all(_close(*pair) for pair in zip(diagonal, scores[:count], strict=True))
        # The matrix shows an image's first caption, the score is the mean over all of them: with several they differ.
        reason = "is not the forgetting scores, as it may only be where images have several captions"
        subject = f"{EVALUATION_NAME}: diagonal of AGM"
        yield (
            Statement(subject, Outcome.HOLDS, "is the forgetting scores")
            if same
            else Statement(subject, Outcome.UNCHECKED, reason)
        )


def _repository(repo_id: str, manifest: UnlearningManifest, commit: str, token: str | None) -> Iterator[Statement]:
    """Check what the repository holds beside the files that were downloaded."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError

    same = manifest.repo_id == repo_id
    yield judged("repository", same, "the one it was published to", f"was published to {manifest.repo_id}")
    try:
        names = HfApi(token=token).list_repo_files(repo_id, revision=commit)
    except (HTTPError, OSError) as error:
        yield Statement("other weights", Outcome.UNCHECKED, f"the Hub cannot be reached ({type(error).__name__})")
        return
    yield _other_files(sorted(name for name in names if is_foreign(name)))


def _other_files(foreign: Sequence[str]) -> Statement:
    """Say whether there is anything beside what is published that could be loaded, or run, as the model's."""
    fine = "no pickles, weights of another form or foreign code beside what is published"
    return judged("other weights", not foreign, fine, f"also holds {', '.join(foreign)}")


def _base_weights(manifest: UnlearningManifest, base: str | Path | None) -> Iterator[Statement]:
    recorded = manifest.base_model.sha256
    if base is None or recorded is None:
        reason = "give the base model's folder with --base" if recorded else "its hash was not recorded"
        yield Statement("base weights", Outcome.UNCHECKED, reason)
        return
    actual = weights_sha256(base)
    yield judged("base weights", actual == recorded, f"SHA-256 {actual}", f"SHA-256 is {actual}, recorded {recorded}")


def _requested_ids(request: RequestRecord, path: str | Path) -> Statement:
    from hf_unlearn.data.fingerprint import combine_hashes
    from hf_unlearn.data.requests import read_request

    subject = f"request, {Path(path).name}"
    if request.salted:
        return Statement(
            subject, Outcome.UNCHECKED, "the hash is of the salted rows, not of ids; give --salt and --image"
        )
    actual = combine_hashes(read_request(path))
    return judged(subject, actual == request.sha256, "these are its ids", f"its ids have SHA-256 {actual}")


def _owned_samples(request: RequestRecord, salt: str | None, samples: Sequence[OwnedSample]) -> Iterator[Statement]:
    from hf_unlearn.data.fingerprint import sample_hash

    for sample in samples:
        subject = f"your {sample.image.name}"
        if request.row_hashes is None:
            yield Statement(subject, Outcome.UNCHECKED, "the request's row hashes are not published")
            continue
        found = sample_hash(sample.image, sample.captions, salt) in request.row_hashes
        yield judged(subject, found, "is in the request", "is not in the request, or the salt or a caption differs")


def _agrees(subject: str, recorded: float | None, expected: float | None) -> Statement:
    return judged(
        subject,
        _close(recorded, expected),
        "none" if recorded is None else f"{recorded:.4g}",
        f"is {_figure(recorded)}, follows as {_figure(expected)}",
    )


def _figure(value: float | None) -> str:
    return "none" if value is None else f"{value:.6g}"


def _difference(value: float | None, exact: float | None) -> float | None:
    return None if value is None or exact is None else abs(value - exact)


def _close(value: float | None, expected: float | None) -> bool:
    if value is None or expected is None:
        return value is expected
    return math.isclose(value, expected, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE)
