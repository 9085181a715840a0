"""What verification says: statements that hold, that do not, or that cannot be checked from here."""

from dataclasses import dataclass
from enum import StrEnum


class Outcome(StrEnum):
    """What a check found."""

    HOLDS = "recomputed and holds"
    FAILS = "does not hold"
    UNCHECKED = "cannot be checked here"


@dataclass(frozen=True)
class Statement:
    """One checked statement."""

    subject: str
    outcome: Outcome
    detail: str = ""

    @property
    def fails(self) -> bool:
        """Whether the statement was found to be wrong."""
        return self.outcome is Outcome.FAILS


@dataclass(frozen=True)
class VerificationReport:
    """Every statement that was checked, in the order of the checks."""

    target: str
    statements: tuple[Statement, ...]

    @property
    def failures(self) -> tuple[Statement, ...]:
        """The statements that do not hold."""
        return tuple(statement for statement in self.statements if statement.fails)

    @property
    def ok(self) -> bool:
        """Whether nothing that could be checked is wrong."""
        return not self.failures


def held(subject: str, detail: str) -> Statement:
    """A statement that was recomputed and holds."""
    return Statement(subject, Outcome.HOLDS, detail)


def failed(subject: str, detail: str) -> Statement:
    """A statement that was found to be wrong."""
    return Statement(subject, Outcome.FAILS, detail)


def unchecked(subject: str, detail: str) -> Statement:
    """A statement that nobody can check from here."""
    return Statement(subject, Outcome.UNCHECKED, detail)


def judged(subject: str, holds: bool, detail: str, problem: str) -> Statement:
    """State what was found of a subject: `detail` where it holds, `problem` where it does not."""
    return held(subject, detail) if holds else failed(subject, problem)
