"""The comparison across methods: `results.json`, `results.md` and the table on the terminal are one set of rows."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from hf_unlearn.files import write_atomically
from hf_unlearn.methods import METHODS, description_of
from hf_unlearn.metrics.gap import gap_to_retrain
from hf_unlearn.records.codec import to_json
from hf_unlearn.records.file_names import RESULTS_NAME
from hf_unlearn.records.metric_labels import first_request_note, is_of_a_holdout, short_name, shown
from hf_unlearn.records.schemas import ComparisonRow, Results

# Columns of the printed table by family; the JSON holds every metric.
COLUMNS = {
    "image-text": ("cosine_retain", "cosine_unlearn", "cosine_test", "zero_shot_test"),
    "views": ("emia", "retain_accuracy", "test_accuracy", "unlearn_accuracy", "cmia"),
}
TAIL = ("forgetting_score", "negative_alignment", "run_time_minutes", "estimated_gap")
TERMINAL_WIDTH = 80
ORIGINAL = "original"  # the model before any request, where the run's own base has been through some
REFERENCES = {ORIGINAL: "original model", "before": "before unlearning"}
# Columns that a narrow table goes without, the first first.
_DISPENSABLE = ("negative_alignment", "forgetting_score", "run_time_minutes")


def make_results(
    family: str, gap_keys: Sequence[str], metrics: dict[str, dict[str, float]], retrain: dict[str, float] | None
) -> Results:
    """Rows of the comparison, with each method's gap to Retrain where Retrain is known.

    Args:
        family: image-text or views.
        gap_keys: metrics whose absolute difference to Retrain is averaged.
        metrics: "original", "before" or method id -> flat metrics.
        retrain: Retrain's metrics, or None.
    """
    rows = []
    for method, values in metrics.items():
        gap = None if retrain is None or method == "retrain" else gap_to_retrain(values, retrain, gap_keys)
        per_key: dict[str, float | None] = dict(gap.per_key) if gap else {}
        title = description_of(method).title if method in METHODS else ""
        rows.append(ComparisonRow(method, dict(values), per_key, gap.average if gap else None, title))
    return Results(family, tuple(gap_keys), tuple(rows))


def save_results(results: Results, folder: Path) -> None:
    """Write `results.json` and `results.md`."""
    write_atomically(folder / RESULTS_NAME, to_json(results))
    write_atomically(folder / "results.md", markdown_table(results))


def markdown_table(results: Results) -> str:
    """The comparison as a Markdown table: gaps to Retrain in parentheses, the smallest average gap in bold."""
    columns = _columns(results)
    header, lines = _cells(results, columns, decimals=2)
    gaps = [row.avg_gap for row in results.rows if row.avg_gap is not None and row.method not in REFERENCES]
    retrain = next((row.metrics for row in results.rows if row.method == "retrain"), {})
    for row, line in zip(results.rows, lines, strict=True):
        for i, key in enumerate(columns, start=1):
            gap = row.gap.get(key)
            if is_of_a_holdout(key) and row.method != "retrain" and key in retrain:  # beside the average, not in it
                gap = abs((row.metrics.get(key) or 0.0) - (retrain[key] or 0.0))
            line[i] += f" ({gap:.2f})" if gap is not None else ""
        if row.method not in REFERENCES and gaps and row.avg_gap == min(gaps):
            line[-1] = f"**{line[-1]}**"
    table = markdown([header, ["---"] + ["---:"] * (len(header) - 1), *lines])
    return table + "".join(f"\n{note}\n" for note in _notes(results, columns))


def text_table(results: Results, width: int = TERMINAL_WIDTH) -> str:
    """The comparison for a terminal: one decimal, headers stacked, as many columns as the width has room for.

    A line below names the columns that it had no room for.
    """
    columns = everything = _columns(results)
    for dispensable in (None, *_DISPENSABLE):
        columns = [key for key in columns if key != dispensable]
        header, rows = _cells(results, columns, decimals=1)
        text = aligned([*(stacked := _stacked(header)), *rows], words=1)
        if len(text[0]) <= width:
            break
    text.insert(len(stacked), "-" * len(text[0]))
    if without := [short_name(key) for key in _DISPENSABLE if key in everything and key not in columns]:
        text.append(f"Too wide for here: {', '.join(without)}.")
    return "\n".join([*text, *_notes(results, columns)])


def _notes(results: Results, columns: Sequence[str]) -> list[str]:
    return [first_request_note(columns)] if any(row.method == ORIGINAL for row in results.rows) else []


def _stacked(header: Sequence[str]) -> list[list[str]]:
    """The words of each header one above the other, at the foot of the column."""
    words = [title.split() if i else [title] for i, title in enumerate(header)]
    height = max(map(len, words))
    columns = [[""] * (height - len(column)) + column for column in words]
    return [list(line) for line in zip(*columns, strict=True)]


def markdown(lines: Iterable[Sequence[str]]) -> str:
    """Rows of cells, the header and its rule among them, as a Markdown table."""
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def aligned(lines: Sequence[Sequence[str]], words: int) -> list[str]:
    """Rows of cells as lines of one width: the first columns, so many, hold words, and the others numbers."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        "  ".join(c.ljust(w) if i < words else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True)))
        for line in lines
    ]


def _columns(results: Results) -> list[str]:
    return columns_of(results.family, {key for row in results.rows for key in row.metrics})


def columns_of(family: str, present: Iterable[str]) -> list[str]:
    """The metrics of a comparison's columns: a family's, those of `holdout_*` splits, and what every family has."""
    present = set(present)
    holdouts = sorted(key for key in present if is_of_a_holdout(key))
    return [key for key in (*COLUMNS[family], *holdouts, *TAIL) if key in present]


def _cells(results: Results, columns: Sequence[str], decimals: int) -> tuple[list[str], list[list[str]]]:
    header = ["Method", *(short_name(key) for key in columns), "Avg. gap"]
    rows = []
    for row in results.rows:
        name = REFERENCES.get(row.method, row.method_title)
        values = [shown(row.metrics, key, decimals) for key in columns]
        rows.append([name, *values, "–" if row.avg_gap is None else f"{row.avg_gap:.{decimals}f}"])
    return header, rows
