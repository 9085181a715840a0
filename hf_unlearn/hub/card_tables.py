"""The tables of a model card, cell by cell from the records; what they hold is escaped here."""

from collections.abc import Iterable, Sequence

from hf_unlearn.records.metric_labels import in_display_order, metric_label, short_name, shown
from hf_unlearn.records.schemas import BaseModel, EvaluationRecord, RequestStatus, UnlearningManifest
from hf_unlearn.text import markdown_code, markdown_text

NONE = "–"
HISTORY_HEADER = ("Run", "Date", "Method", "Samples", "Request, SHA-256")


def facts(manifest: UnlearningManifest) -> list[tuple[str, str]]:
    """What was removed from what, as rows of a table."""
    request, base, data = manifest.request, manifest.base_model, manifest.dataset
    initial = manifest.initial_model
    named = (("Initial model", _model(initial)), ("Initial weights, SHA-256", _code(initial.sha256))) if initial else ()
    splits = ", ".join(f"{markdown_text(name)} {count:,}" for name, count in manifest.splits.items())
    return [
        ("Samples asked to be removed", f"{request.count:,} ({markdown_text(request.kind)})"),
        ("Request, SHA-256", f"{_code(request.sha256)} ({'salted' if request.salted else 'not salted'})"),
        ("Data", _code(data.name) + (f", revision {_code(data.revision)}" if data.revision else "")),
        ("Data, SHA-256 over all rows", _code(data.sha256)),
        ("Rows", splits),
        ("Base model", _model(base)),
        ("Base weights, SHA-256", _code(base.sha256)),
        *named,
        ("These weights, SHA-256", _code(manifest.weights_sha256)),
    ]


def _model(model: BaseModel) -> str:
    return f"{_code(model.name_or_path)}, " + (f"revision {_code(model.revision)}" if model.revision else "local")


def circumstances(manifest: UnlearningManifest) -> list[tuple[str, ...]]:
    """When, where and from which seeds the run was made, as rows of a table."""
    seconds = manifest.run_time_seconds
    rows = [
        ("Preset", manifest.preset or NONE),
        ("Seed", NONE if manifest.seed is None else manifest.seed),
        ("Seed of the split", NONE if manifest.split_seed is None else manifest.split_seed),
        ("Time", NONE if seconds is None else f"{seconds:,.1f} s"),
        ("Hardware", manifest.hardware or NONE),
        ("Date", manifest.created),
        ("Versions", ", ".join(f"{name} {number}" for name, number in manifest.versions.items()) or NONE),
    ]
    return texts(rows)


def history_table(manifest: UnlearningManifest, evaluation: EvaluationRecord | None) -> str:
    """Every request that the model has been through, oldest first."""
    statuses = manifest.requests if evaluation is None else evaluation.requests
    measured = {status.number: status for status in statuses}
    rows = [
        (
            str(number),
            markdown_text(entry.created),
            markdown_text(entry.method),
            f"{entry.request.count:,}",
            _code(entry.request.sha256),
            *_level(measured.get(number)),
        )
        for number, entry in enumerate((*manifest.history, manifest.as_history_entry()), start=1)
    ]
    return table((*HISTORY_HEADER, "Then", "Now", "Never seen", "Est. gap"), rows)


def _level(status: RequestStatus | None) -> tuple[str, str, str, str]:
    """What its own run left a request's samples at, where they are now with the interval, and what is never seen."""
    if status is None or status.now is None:
        return number(None if status is None else status.then), "not measured", NONE, NONE
    interval = "" if status.low is None or status.high is None else f" ({status.low:.1f} to {status.high:.1f})"
    now = f"{status.now:.1f}{interval}"
    now = f"**{now}, drifted back**" if status.drifted else now
    return number(status.then), now, number(status.non_member), number(status.estimated_gap)


def metrics_table(evaluation: EvaluationRecord) -> str:
    """Every metric before, after and of Retrain, and of the model before any request; the average gap's in bold."""
    original = {} if evaluation.original is None else {"Original": evaluation.original}
    exact = evaluation.retrain or {}
    columns = {**original, "Before": evaluation.before or {}, "This model": evaluation.metrics, "Retrain": exact}
    rows = []
    for key in in_display_order(evaluation.metrics):
        label = metric_label(key)
        name = markdown_text(f"{label.name}{f' ({label.unit})' if label.unit else ''}")
        after, due = evaluation.metrics[key], exact.get(key)
        gap = NONE
        if after is not None and due is not None and key != "run_time_minutes":
            gap = number(abs(after - due))
        cells = [_with_deviation(key, values) for values in columns.values()]
        rows.append((f"**{name}**" if key in evaluation.gap_keys else name, *cells, gap))
    return table(("Metric", *columns, "Gap to Retrain"), rows, numbers=len(columns) + 1)


def comparison_table(evaluation: EvaluationRecord) -> str:
    """The methods of one run beside each other, over the metrics of the average gap."""
    rows = []
    for row in evaluation.comparison:
        cells = []
        for key in evaluation.gap_keys:
            gap = row.gap.get(key)
            cells.append(number(row.metrics.get(key)) + (f" ({number(gap)})" if gap is not None else ""))
        name = markdown_text(row.method.title() if row.method in ("original", "before") else row.method_title)
        rows.append((name, *cells, number(row.avg_gap), number(row.metrics.get("run_time_minutes"))))
    header = ("Method", *(markdown_text(short_name(key)) for key in evaluation.gap_keys), "Avg. gap", "Minutes")
    return table(header, rows, numbers=len(header) - 1)


def _with_deviation(key: str, values: dict[str, float | None]) -> str:
    deviation = values.get(f"{key}_std")
    if deviation is None:
        return shown(values, key).replace(" ", "\N{NO-BREAK SPACE}")
    return f"{number(values.get(key))}\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}{number(deviation)}"


def number(value: float | None) -> str:
    """A figure with two decimals."""
    return NONE if value is None else f"{value:.2f}"


def _code(value: str | None) -> str:
    return markdown_code(value) if value else NONE


def texts(rows: Iterable[Sequence[object]]) -> list[tuple[str, ...]]:
    """Rows of plain text, which markdown must not act on."""
    return [tuple(markdown_text(cell) for cell in row) for row in rows]


def table(header: Sequence[str], rows: Iterable[Sequence[object]], numbers: int = 0) -> str:
    """Lay out a markdown table; its last `numbers` columns are aligned to the right."""
    rule = ["---"] * (len(header) - numbers) + ["---:"] * numbers
    lines = [header, rule, *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", r"\|") for cell in line) + " |" for line in lines)
