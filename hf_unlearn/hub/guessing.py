"""Which requests can be found by trying: the hash of a short list of known ids is that of few lists."""

import math

from hf_unlearn.records.schemas import RequestRecord, UnlearningManifest

TRIED = 80  # as a power of two: as many hashes are beyond anybody's means, and far fewer are not
_MOST_ROWS = 2**63  # a record may name any number


def has_few_lists(count: int, rows: int) -> bool:
    """Whether so few lists of some rows are possible that all can be tried."""
    if not 0 < count <= rows < _MOST_ROWS:
        return False
    rest = rows - count
    lists = math.lgamma(rows + 1.0) - math.lgamma(count + 1.0) - math.lgamma(rest + 1.0)
    return lists < TRIED * math.log(2)


def found_by_trying(manifest: UnlearningManifest) -> tuple[int, ...]:
    """The requests of a record, by number, that whoever knows the ids of the data can find from their hashes."""
    rows, requests = sum(manifest.splits.values()), [*(run.request for run in manifest.history), manifest.request]
    return tuple(number for number, request in enumerate(requests, start=1) if is_found_by_trying(request, rows))


def is_found_by_trying(request: RequestRecord, rows: int) -> bool:
    """Whether whoever knows the ids of so many rows can find a request from its hash."""
    return not request.salted and has_few_lists(request.count, rows)


def guessing_note(request: RequestRecord, rows: int) -> str | None:
    """What must be said before a run whose request can be found from its record."""
    if not is_found_by_trying(request, rows):
        return None
    return (
        f"The request's hash has no salt, and of {rows:,} rows there are so few lists of {request.count:,} that "
        "whoever knows the ids can try them all: once its record is published, anybody can tell which rows these are. "
        "Give --request_salt, unless everybody may know."
    )
