"""What verification says: statements that hold, that do not, or that cannot be checked from here."""

from dataclasses import dataclass
from enum import StrEnum


class Verdict(StrEnum):
    """What a check found."""

    HOLDS = "holds"
    FAILS = "does not hold"
    UNCHECKED = "cannot be checked here"


@dataclass(frozen=True)
class Line:
    """One checked statement."""

    subject: str
    verdict: Verdict
    detail: str = ""

    @property
    def fails(self) -> bool:
        """Whether the statement was found to be wrong."""
        return self.verdict is Verdict.FAILS


@dataclass(frozen=True)
class VerificationReport:
    """Every statement that was checked, in the order of the checks."""

    target: str
    lines: tuple[Line, ...]

    @property
    def failures(self) -> tuple[Line, ...]:
        """The statements that do not hold."""
        return tuple(line for line in self.lines if line.fails)

    @property
    def ok(self) -> bool:
        """Whether nothing that could be checked is wrong."""
        return not self.failures


def judged(subject: str, holds: bool, detail: str, problem: str) -> Line:
    """State what was found of a subject: `detail` where it holds, `problem` where it does not."""
    return Line(subject, Verdict.HOLDS, detail) if holds else Line(subject, Verdict.FAILS, problem)
