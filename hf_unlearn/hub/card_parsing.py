"""Read a card back: its metadata, each cell of its tables with its place, and the lines of text between."""

import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

from hf_unlearn.parsing import parse_yaml


@dataclass(frozen=True)
class Cell:
    """Where a figure stands in a card: the section, the row's first cell and the column's header."""

    section: str
    row: str
    column: str

    def __str__(self) -> str:
        return f"{self.section}, {self.row.strip('*')}, {self.column}"


def table_cells(card: str) -> dict[Cell, str]:
    """Map each cell of every table in a card, but for the rows' names, to its text.

    Nothing that a reader sees is passed over: headers are rows too, a row that repeats another's name is numbered, and
    cells that are missing from a row are empty.
    """
    cells: dict[Cell, str] = {}
    seen: Counter[tuple[str, str]] = Counter()
    section = ""
    header: list[str] = []
    ruled = False  # whether the line of dashes under the header has passed
    for line in _body(card):
        if line.startswith("#"):
            section = line.lstrip("# ")
        if not line.lstrip().startswith("|"):
            header, ruled = [], False
            continue
        row = _split(line)
        if header and not ruled and all(cell and set(cell) <= set("-:") for cell in row):
            ruled = True
            continue
        name, columns = (row[0], header) if header else (f"header {row[0]}", [])
        header = header or row
        seen[section, name] += 1
        if (number := seen[section, name]) > 1:
            name = f"{name} ({number})"
        for place in range(1, max(len(columns), len(row), 2)):
            column = columns[place] if place < len(columns) else f"column {place + 1}"
            cells[Cell(section, name, column)] = row[place] if place < len(row) else ""
    return cells


def metadata(card: str) -> Any:
    """Parse the metadata block of a card; None where there is none.

    Raises:
        UserError: It is no YAML.
    """
    lines = _lines(card)
    if not (end := _end(lines)):
        return None
    return parse_yaml("\n".join(lines[1 : end - 1]), "the metadata of the card")


def prose(card: str) -> list[str]:
    """List the lines of a card outside its metadata and tables."""
    return [line for line in _body(card) if line and not line.lstrip().startswith("|")]


def _body(card: str) -> list[str]:
    """Split off the metadata block."""
    lines = _lines(card)
    return lines[_end(lines) :]


def _lines(card: str) -> list[str]:
    """Split at the ends of lines that Markdown has, and at no other that Python knows."""
    return [line.rstrip(" \t") for line in re.split(r"\r\n|\n|\r", card)]


def _end(lines: list[str]) -> int:
    """Where the body begins: after the metadata block, if there is one."""
    return lines.index("---", 1) + 1 if lines[:1] == ["---"] and "---" in lines[1:] else 0


def _split(line: str) -> list[str]:
    """Split a table row at its pipes, but not at escaped ones."""
    inner = line.strip().replace(r"\|", "\0").removeprefix("|").removesuffix("|")
    return [cell.strip().replace("\0", "|") for cell in inner.split("|")]
