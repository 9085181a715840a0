"""What a request's figures say of whether it came back, and why they may say nothing."""

from hf_unlearn.metrics._few import FEW
from hf_unlearn.records.schemas import RequestStatus

_NO_WIDTH = 1e-4  # of an interval, in hundredths of a cosine


def untold(status: RequestStatus) -> str:
    """Why the figures of a measured request cannot say whether it came back; empty where they can."""
    recorded = status.then if status.then_all is None else status.then_all
    if recorded is None:
        return "what its own run left its rows at was not measured"
    # Earlier versions compared any rows with the mean of all.
    is_of_others = status.then_rows is None and status.measured < status.count
    if status.then is None or is_of_others:
        rows, are = status.then_rows or status.count, "is" if status.measured == 1 else "are"
        return (
            f"of the {rows} rows that its own run left at {recorded:.1f}, {status.measured} {are} measured, and what "
            "it left these at is not recorded"
        )
    if has_no_width(status):
        alike = f"the {status.measured} rows measured are alike, which have"
        return f"{'one row is measured, which has' if status.measured == 1 else alike} no interval"
    return ""


def has_no_width(status: RequestStatus) -> bool:
    """Whether so few rows are measured that they have no interval; earlier versions recorded one without width."""
    if status.measured >= FEW:
        return False
    return status.low is None or status.high is None or status.high - status.low < _NO_WIDTH


def drift_notes(statuses: tuple[RequestStatus, ...]) -> tuple[str, ...]:
    """What must be said of earlier requests that the model has drifted back to, or may have."""
    notes = []
    for status in statuses:
        if status.drifted:
            notes.append(
                f"The model has drifted back to request {status.number}: the mean alignment of its rows is "
                f"{status.now:.1f} (95% interval {status.low:.1f} to {status.high:.1f}), after its own run it was "
                f"{status.then:.1f}, and held-out rows are at {status.non_member:.1f}. Unlearn its rows again, or "
                f"retrain.{few_note(status)}"
            )
        elif status.created is not None and status.measured and (reason := untold(status)):
            then = "" if status.then is None else f", after its own run it was {status.then:.1f}"
            notes.append(
                f"Whether the model has drifted back to request {status.number} cannot be told: {reason}. The mean "
                f"alignment measured is {status.now:.1f}{then}, and held-out rows are at {status.non_member:.1f}."
            )
    return tuple(notes)


def few_note(status: RequestStatus) -> str:
    """What is to be said beside an interval that is read off few rows."""
    return f" The interval is too narrow, as it is read off {status.measured} rows." if status.measured < FEW else ""
