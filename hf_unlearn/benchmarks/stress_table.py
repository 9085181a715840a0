"""The stress test's table: what each attack gives on Retrain, on each method, and whether it has power at all."""

from collections.abc import Sequence

from hf_unlearn.benchmarks.attacks import POINTS, AttackRow
from hf_unlearn.methods import description_of
from hf_unlearn.runs import results
from hf_unlearn.runs.experiment import BEFORE

TOLERANCE = 2.0  # points that an attack may differ from the same attack on Retrain


def markdown(rows: Sequence[AttackRow]) -> str:
    """One row an attack: Retrain's value, then each method's with its difference to Retrain in parentheses.

    Differences beyond the tolerance are bold. An attack has power if it finds the untouched model: if its value there
    differs from Retrain's by more than the tolerance and by more than twice what Retrains vary. Below, the count of
    attacks within the tolerance for each method, of all and of those with power.
    """
    names = [name for name in rows[0].values]
    lines = [["Attack", "Retrain", *map(_title, names), "Power"], ["---", *["---:"] * (len(names) + 1), "---"]]
    for row in rows:
        spread = "" if row.retrain_std is None else f" ± {row.retrain_std:.2f}"
        unit = f" ({row.unit})" if row.unit != POINTS else ""
        cells = [f"{row.attack}{unit}", f"{row.retrain:.2f}{spread}"]
        found = has_power(row)
        power = "–" if found is None else "yes" if found else "no"
        lines.append([*cells, *(_cell(row, name) for name in names), power])
    powerful = [row for row in rows if has_power(row)]
    return (
        f"{results.markdown(lines)}\nAttacks (in points) within {TOLERANCE:g} points of Retrain's: "
        f"{_counts(rows, names)}. Of those with power: {_counts(powerful, names)}.\n"
    )


def has_power(row: AttackRow) -> bool | None:
    """Whether an attack finds the untouched model; None if it was not made on it, or is not in points."""
    if row.unit != POINTS or BEFORE not in row.values:
        return None
    return not abs(row.differences[BEFORE]) <= max(TOLERANCE, 2 * (row.retrain_std or 0.0))


def _counts(rows: Sequence[AttackRow], names: Sequence[str]) -> str:
    return "; ".join(_verdict(rows, name) for name in names)


def _cell(row: AttackRow, name: str) -> str:
    if name not in row.values:
        return "–"
    difference = row.differences[name]
    text = f"{row.values[name]:.2f} ({difference:+.2f})"
    return f"**{text}**" if _is_beyond(row, name) else text


def _verdict(rows: Sequence[AttackRow], name: str) -> str:
    measured = [row for row in rows if name in row.values and row.unit == POINTS]
    within = sum(not _is_beyond(row, name) for row in measured)
    return f"{_title(name)} {within} of {len(measured)}"


def _is_beyond(row: AttackRow, name: str) -> bool:
    """Not within the tolerance; a value that is no number is not, either."""
    return row.unit == POINTS and not abs(row.differences[name]) <= TOLERANCE


def _title(name: str) -> str:
    return "before unlearning" if name == BEFORE else description_of(name).title
