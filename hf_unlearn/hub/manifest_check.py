"""Are the records well formed and at one with themselves: hashes, counts, requests and their history."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

from hf_unlearn.errors import listed
from hf_unlearn.hub.verification_report import Statement, failed, held, judged, unchecked
from hf_unlearn.records.file_names import MANIFEST_NAME
from hf_unlearn.records.schemas import COMMIT, RequestRecord, UnlearningManifest

_SHA256 = re.compile(r"[0-9a-f]{64}")
_FIRST = datetime(2000, 1, 1, tzinfo=UTC)
_MOST_ROWS = 2**63  # beyond which nothing counts rows
_VERSION = re.compile(r"\d+(\.\d+)*((a|b|rc|\.post|\.dev)\d+)*")


@dataclass(frozen=True)
class OwnedSample:
    """A picture, and its captions where the model was trained on pairs, that its owner asks about."""

    image: Path
    captions: tuple[str, ...] = ()


def verify_manifest(manifest: UnlearningManifest) -> Iterator[Statement]:
    """Check `unlearning.json` by itself, and say what only the publisher knows."""
    yield _hashes(manifest)
    requests = [entry.request for entry in manifest.history]
    yield _request("request", manifest.request)
    for number, request in enumerate(requests, start=1):
        yield _request(f"request of run {number}", request)
    yield _counts(manifest)
    yield _versions(manifest)
    yield from _history(manifest)
    yield unchecked("method", "its name, words, settings, time and hardware are what the publisher recorded")


def _counts(manifest: UnlearningManifest) -> Statement:
    subject, unlearn, count = f"{MANIFEST_NAME}: counts", manifest.splits.get("unlearn", 0), manifest.request.count
    for number, entry in enumerate(manifest.history, start=1):
        if not 0 < entry.request.count < _MOST_ROWS:
            return failed(subject, f"run {number} was asked for {entry.request.count} samples")
    return judged(
        subject,
        0 < count <= unlearn and all(0 <= rows < _MOST_ROWS for rows in manifest.splits.values()),
        f"{count} requested, {unlearn} in the unlearn split",
        f"{count} requested, but {unlearn} in the unlearn split",
    )


def _hashes(manifest: UnlearningManifest) -> Statement:
    """Every hash has the form of one, and those of different things differ."""
    named: dict[str, str | None] = {
        "weights_sha256": manifest.weights_sha256,
        "base_model.sha256": manifest.base_model.sha256,
        "dataset.sha256": manifest.dataset.sha256,
        "retain_sha256": manifest.retain_sha256,
        "request.sha256": manifest.request.sha256,
    }
    others: dict[str, str | None] = {f"files.{name}": sha256 for name, sha256 in manifest.files.items()}
    for number, entry in enumerate(manifest.history):
        others |= {f"history[{number}].weights_sha256": entry.weights_sha256}
        others |= {f"history[{number}].base_sha256": entry.base_sha256}
    for split, hashes in manifest.held_out.items():
        others |= {f"held_out.{split}[{number}]": sha256 for number, sha256 in enumerate(hashes)}
        if len(set(hashes)) < len(hashes):
            named[f"held_out.{split}, which repeats one"] = "repeated"
    for number, (row, hashes) in enumerate(manifest.parts.items()):
        others |= {f"parts[{number}]": sha256 for sha256 in (row, *hashes)}
    initial = manifest.initial_model
    others |= {"initial_model.sha256": None if initial is None else initial.sha256}
    malformed = [
        name for name, sha256 in (named | others).items() if sha256 is not None and not _SHA256.fullmatch(sha256)
    ]
    subject, known = f"{MANIFEST_NAME}: hashes", [sha256 for sha256 in named.values() if sha256 is not None]
    if malformed:
        return failed(subject, f"not a SHA-256: {listed(malformed)}")
    revisions = {"base_model": manifest.base_model.revision, "initial_model": initial.revision if initial else None}
    if wrong := [name for name, commit in revisions.items() if commit is not None and not COMMIT.fullmatch(commit)]:
        return failed(subject, f"not a commit: {listed(wrong)}.revision")
    one_for_two = len(set(known) - {manifest.base_model.sha256}) < len(
        [h for h in known if h != manifest.base_model.sha256]
    )
    return judged(subject, not one_for_two, "well formed and distinct", "one hash stands for two different things")


def _versions(manifest: UnlearningManifest) -> Statement:
    subject, recorded = f"{MANIFEST_NAME}: versions", manifest.versions.get("hf-unlearn") or manifest.library_version
    if not manifest.versions:
        return failed(subject, "no library version is recorded")
    if not _VERSION.fullmatch(manifest.library_version):
        return failed(subject, f"{manifest.library_version!r} is no version of hf_unlearn")
    return judged(
        subject,
        recorded == manifest.library_version,
        f"recorded for {len(manifest.versions)} libraries; that the run used them cannot be seen",
        f"hf_unlearn is {manifest.library_version} in one place and {recorded} in the other",
    )


def _request(subject: str, request: RequestRecord) -> Statement:
    from hf_unlearn.data.fingerprint import combine_hashes

    if not _SHA256.fullmatch(request.sha256):
        return failed(subject, f"its hash is no SHA-256: {request.sha256}")
    if request.sha256 == combine_hashes([]):
        return failed(subject, "its hash is that of no ids at all")
    if request.row_hashes is None:
        return unchecked(subject, f"SHA-256 {request.sha256} of ids that only the owners hold; --request compares them")
    if not request.salted:
        return failed(subject, "its row hashes are published without a salt and can be guessed")
    if len(request.row_hashes) != request.count:
        return failed(subject, f"{len(request.row_hashes)} row hashes for {request.count} samples")
    if malformed := [value for value in request.row_hashes if not _SHA256.fullmatch(value)]:
        return failed(subject, f"{len(malformed)} of its row hashes are no SHA-256: {malformed[0]}")
    combined = combine_hashes(request.row_hashes)
    problem = f"its rows combine to SHA-256 {combined}, recorded {request.sha256}: a row was changed"
    different = len(set(request.row_hashes))  # rows that are alike have one hash
    alike = f", {different} of them different," if different < request.count else ""
    fine = (
        f"{request.count} row hashes{alike} combine to its SHA-256; whose rows they are is seen with --salt and --image"
    )
    return judged(subject, combined == request.sha256, fine, problem)


def _history(manifest: UnlearningManifest) -> Iterator[Statement]:
    runs = [*manifest.history, manifest.as_history_entry()]
    problems = [f"run {number} is not dated" for number, run in enumerate(runs, start=1) if _date(run.created) is None]
    dates = [_date(run.created) or datetime.min.replace(tzinfo=UTC) for run in runs]
    for number, (earlier, later) in enumerate(pairwise(runs), start=2):
        if later.base_sha256 != earlier.weights_sha256:
            problems.append(f"run {number} did not start from the weights of run {number - 1}")
        if later.weights_sha256 == earlier.weights_sha256:
            problems.append(f"run {number} left the weights of run {number - 1} as they were")
        if dates[number - 1] < dates[number - 2]:
            problems.append(f"run {number} is dated before run {number - 1}")
    had: list[str | None] = []
    for number, run in enumerate(runs, start=1):
        if run.weights_sha256 in had:
            problems.append(f"run {number} came back to weights that the model had before")
        had.append(run.base_sha256)
    if len(runs) > 1 and runs[0].weights_sha256 == runs[0].base_sha256:
        problems.append("run 1 left the weights of the base model as they were")
    if dates[0] < _FIRST:
        problems.append(f"the first run is dated before {_FIRST.year}")
    if dates[-1] > datetime.now(UTC) + timedelta(days=1):
        problems.append("the last run is dated in the future")
    yield judged("history", not problems, f"{len(runs)} runs, each from the weights of the last", "; ".join(problems))


def _date(created: str) -> datetime | None:
    """A moment in ISO 8601, in UTC where it says nothing else."""
    try:
        moment = datetime.fromisoformat(created)
    except ValueError:
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _requests(manifest: UnlearningManifest) -> list[RequestRecord]:
    """The requests that the model has been through, the last one first."""
    return [manifest.request, *(entry.request for entry in reversed(manifest.history))]


def _which(places: Sequence[int], count: int) -> str:
    """The requests at some places of `_requests`, by their numbers in the history."""
    if count == 1:
        return "the request"
    numbers = " and ".join(str(count - place) for place in sorted(places, reverse=True))
    return f"request{'s' if len(places) > 1 else ''} {numbers} of {count}"


def verify_request_file(manifest: UnlearningManifest, path: str | Path) -> Statement:
    """Check the ids in a file against the hash of any request that the model has been through."""
    from hf_unlearn.data.fingerprint import combine_hashes
    from hf_unlearn.data.requests import read_request

    subject, requests = f"request, {Path(path).name}", _requests(manifest)
    if all(request.salted for request in requests):
        return unchecked(subject, "the hash is of the salted rows, not of ids; give --salt and --image")
    actual = combine_hashes(read_request(path))
    same = [number for number, request in enumerate(requests) if not request.salted and request.sha256 == actual]
    if same:
        which = "" if len(requests) == 1 else f" of {_which(same, len(requests))}"
        return held(subject, f"these are its ids{which}")
    told = f"its ids have SHA-256 {actual}"
    if salted := [number for number, request in enumerate(requests) if request.salted]:
        told += f"; the hash of {_which(salted, len(requests))} is of salted rows, not of ids: give --salt and --image"
        return unchecked(subject, told)
    return failed(subject, told)


def verify_named_request(
    manifest: UnlearningManifest, named: RequestRecord, path: str | Path | None, same_rows: bool
) -> Statement | None:
    """Check that what is measured again is the recorded request: with another one every figure would differ.

    Args:
        manifest: The record, whose figures are those of its last request.
        named: The request that the options name, on the data at hand.
        path: Its file, if it has one.
        same_rows: Whether the data is the recorded one. In other data only the ids in a file can be compared.

    Returns:
        What was found; None where the two cannot be compared.
    """
    recorded, is_file = manifest.request, path is not None
    if not same_rows and (not is_file or recorded.salted):
        return None
    name = f"request, {Path(path).name if path is not None else 'as the options name it'}"
    if recorded.salted != named.salted:
        told = "the hash is of the salted rows, not of ids; give --salt" if recorded.salted else "it has no salt"
        return unchecked(name, told)
    if named.sha256 == recorded.sha256:
        return held(name, "this is the recorded one")
    requests = _requests(manifest)
    problem = f"is not the recorded request: {named.count} samples with SHA-256 {named.sha256}, recorded "
    problem += f"{recorded.count} with {recorded.sha256}"
    if same := [place for place, request in enumerate(requests) if request.sha256 == named.sha256]:
        problem += f"; it is {_which(same, len(requests))}, and the figures are of the last"
    return failed(name, problem + ("; or the salt is another" if recorded.salted else ""))


def verify_samples(
    manifest: UnlearningManifest, salt: str | None, samples: Sequence[OwnedSample]
) -> Iterator[Statement]:
    """Look for an owner's samples among the row hashes of every request that the model has been through."""
    from hf_unlearn.data.fingerprint import sample_hash

    requests = _requests(manifest)
    for sample in samples:
        subject = f"your {sample.image.name}"
        if all(request.row_hashes is None for request in requests):
            yield unchecked(subject, "the request's row hashes are not published")
            continue
        sha256 = sample_hash(sample.image, sample.captions, salt)
        found = [number for number, request in enumerate(requests) if sha256 in (request.row_hashes or ())]
        absent = "is not in the request, or the salt or a caption differs"
        if found:
            yield held(subject, f"is in {_which(found, len(requests))}")
        elif untold := [number for number, request in enumerate(requests) if request.row_hashes is None]:
            told = f"{absent}; the row hashes of {_which(untold, len(requests))} are not published"
            yield unchecked(subject, told)
        else:
            yield failed(subject, absent)
