"""A finished audit: one result an owner, and everything that a report shows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hf_unlearn.audit.embeddings import Embeddings
from hf_unlearn.audit.pictures import Picture
from hf_unlearn.errors import UserError
from hf_unlearn.metrics.alignment_matrices import Matrix
from hf_unlearn.parsing import Fields
from hf_unlearn.records.audit_result import AuditResult


@dataclass(frozen=True)
class AlignmentMatrices:
    """One owner's requested pictures as both models align them (section 4.2 of the paper).

    Args:
        pictures: The pictures of the rows.
        captions: Their first captions, or None for views alone.
        am_before: Alignment matrix before.
        am_after: Alignment matrix after.
        omitted: Requested pictures beyond the 200 shown.
    """

    pictures: tuple[Picture, ...]
    captions: tuple[str, ...] | None
    am_before: Matrix
    am_after: Matrix
    omitted: int = 0


@dataclass(frozen=True)
class Audit:
    """A finished audit: one result an owner, with everything the report shows.

    Args:
        results: Owner to result; the only owner is the empty string.
        matrices: Owner to alignment matrices.
        pictures: Name to picture, for thumbnails.
        measurement: How it was measured: encoders, views, seeds, versions, times.
        notes: Remarks on the measurement that a reader should know.
        folder: Where the report lies.
        command: The arguments that repeat it, paths relative to the report.
        recordings: Side to embeddings of all pictures, kept beside the report.
        captions: Each picture's captions, in the order of the pictures.
    """

    results: Mapping[str, AuditResult]
    matrices: Mapping[str, AlignmentMatrices]
    pictures: Mapping[str, Picture]
    measurement: Fields
    notes: tuple[str, ...]
    folder: Path
    command: Fields = field(default_factory=dict)
    recordings: Mapping[str, Embeddings] = field(default_factory=dict)
    captions: Sequence[Sequence[str]] = ()

    @property
    def result(self) -> AuditResult:
        """The only owner's result.

        Raises:
            UserError: When there are several owners.
        """
        if len(self.results) != 1:
            raise UserError(f"The audit has {len(self.results)} owners; look into 'results'.")
        return next(iter(self.results.values()))
