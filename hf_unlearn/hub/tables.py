"""Read the markdown tables of a card back, each cell with its place."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Cell:
    """Where a figure stands in a card: the section, the row's first cell and the column's header."""

    section: str
    row: str
    column: str

    def __str__(self) -> str:
        return f"{self.section}, {self.row.strip('*')}, {self.column}"


def table_cells(card: str) -> dict[Cell, str]:
    """Map each cell of every table in a card, but for the rows' names, to its text."""
    cells: dict[Cell, str] = {}
    section = ""
    header: list[str] = []
    for line in _body(card):
        if line.startswith("#"):
            section = line.lstrip("# ")
        if not line.startswith("|"):
            header = []
            continue
        row = _split(line)
        if not header:
            header = row
        elif not set(row[0]) <= set("-:"):
            cells |= {Cell(section, row[0], name): text for name, text in zip(header[1:], row[1:], strict=False)}
    return cells


def prose(card: str) -> list[str]:
    """List the lines of a card outside its metadata and tables."""
    return [line for line in _body(card) if line and not line.startswith("|")]


def _body(card: str) -> list[str]:
    """Split off the metadata block."""
    lines = [line.rstrip() for line in card.splitlines()]
    if lines[:1] == ["---"] and "---" in lines[1:]:
        return lines[lines.index("---", 1) + 1 :]
    return lines


def _split(line: str) -> list[str]:
    """Split a table row at its pipes, but not at escaped ones."""
    return [cell.strip().replace("\0", "|") for cell in line.replace(r"\|", "\0").strip("|").split("|")]
