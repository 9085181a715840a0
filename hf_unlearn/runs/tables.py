"""The comparison across methods: `results.json`, `results.md` and the table on the terminal are one set of rows."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from hf_unlearn.files import write_atomically
from hf_unlearn.methods import METHODS, description_of
from hf_unlearn.metrics.gap import gap_to_retrain
from hf_unlearn.records.codec import to_json
from hf_unlearn.records.file_names import RESULTS_NAME
from hf_unlearn.records.metric_labels import short_name, shown
from hf_unlearn.records.schemas import ComparisonRow, Results

# Columns of the printed table by family; the JSON holds every metric.
COLUMNS = {
    "image-text": ("cosine_retain", "cosine_unlearn", "cosine_test"),
    "views": ("emia", "retain_accuracy", "test_accuracy", "unlearn_accuracy", "cmia"),
}
TAIL = ("forgetting_score", "negative_alignment", "run_time_minutes", "estimated_gap")


def compare(
    family: str, gap_keys: Sequence[str], metrics: dict[str, dict[str, float]], retrain: dict[str, float] | None
) -> Results:
    """Rows of the comparison, with each method's gap to Retrain where Retrain is known.

    Args:
        family: image-text or views.
        gap_keys: metrics whose absolute difference to Retrain is averaged.
        metrics: "before" or method id -> flat metrics.
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
    header, rows = _cells(results)
    return markdown([header, ["---"] + ["---:"] * (len(header) - 1), *rows])


def text_table(results: Results) -> str:
    """The comparison with aligned columns, for a terminal."""
    header, rows = _cells(results)
    lines = [[cell.replace("**", "") for cell in line] for line in (header, *rows)]
    text = aligned(lines, words=1)
    return "\n".join([text[0], "-" * len(text[0]), *text[1:]])


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


def _cells(results: Results) -> tuple[list[str], list[list[str]]]:
    present = {key for row in results.rows for key in row.metrics}
    columns = [key for key in (*COLUMNS[results.family], *TAIL) if key in present]
    gaps = [row.avg_gap for row in results.rows if row.avg_gap is not None and row.method != "before"]
    header = ["Method", *(short_name(key) for key in columns), "Avg. gap"]
    rows = []
    for row in results.rows:
        name = "before unlearning" if row.method == "before" else row.method_title
        cells = [name]
        for key in columns:
            gap = row.gap.get(key)
            text = shown(row.metrics, key)
            cells.append(f"{text} ({gap:.2f})" if gap is not None else text)
        average = "–" if row.avg_gap is None else f"{row.avg_gap:.2f}"
        best = row.method != "before" and bool(gaps) and row.avg_gap == min(gaps)
        rows.append([*cells, f"**{average}**" if best else average])
    return header, rows
