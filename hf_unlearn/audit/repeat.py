"""Repeat an audit from its report: the same pictures, models and views, and whether the same comes out."""

import math
from dataclasses import dataclass
from pathlib import Path

from hf_unlearn.audit.endpoint_address import is_endpoint
from hf_unlearn.audit.report import REPORT_FILE
from hf_unlearn.audit.run import run_audit
from hf_unlearn.audit.settings import AuditSettings
from hf_unlearn.errors import UserError
from hf_unlearn.parsing import Fields, read_json
from hf_unlearn.records.audit_result import Arm, AuditResult

CLOSE = 1e-3
"""Alignments that differ by less are the same, measured on another machine."""


@dataclass(frozen=True)
class Comparison:
    """A repeated audit beside the first.

    Args:
        verdicts: Owner to both verdicts, the first and the repeated one.
        difference: The largest difference between two alignments of one picture; infinite where one audit has none.
        unmatched: Pictures that only one of the two audits has.
        unanswered: How many alignments one of the two audits has and the other has not, of pictures that both have.
    """

    verdicts: dict[str, tuple[str, str]]
    difference: float
    unmatched: tuple[str, ...]
    unanswered: int = 0

    @property
    def agrees(self) -> bool:
        """Whether verdicts are the same, alignments too, and pictures as well."""
        same = all(first == again for first, again in self.verdicts.values())
        return same and self.difference <= CLOSE and not self.unmatched

    def lines(self) -> list[str]:
        """The comparison as it is told in the terminal."""
        found = [
            f"{owner + ': ' if owner else ''}{first}" + (" both times" if first == again else f", repeated: {again}")
            for owner, (first, again) in self.verdicts.items()
        ]
        found.append(f"Largest difference between two alignments: {self.difference:.2g}.")
        if self.unanswered:
            found.append(f"Alignments that only one of the audits has, for want of an answer: {self.unanswered}.")
        if self.unmatched:
            found.append(f"Pictures that only one of the audits has: {', '.join(self.unmatched[:5])}.")
        return [*found, "The audits agree." if self.agrees else "The audits do not agree."]


def repeat_audit(
    report: str | Path, output_dir: str | Path, *, device: str | None = None, overwrite: bool = False
) -> Comparison:
    """Run a report's audit again with its seed and compare.

    Args:
        report: The folder of a finished audit; pictures and models lie where they lay then, as seen from it.
        output_dir: Where the repeated report goes.
        device: Where checkpoints compute, instead of where they did then.
        overwrite: Whether a finished report in `output_dir` may be replaced; never the one that is repeated.

    Returns:
        How the two compare.

    Raises:
        UserError: When the folder holds no finished audit, what it names is no longer there, or `output_dir` is it.
    """
    folder = Path(report)
    record = read_report(folder)
    if Path(output_dir).resolve() == folder.resolve():
        raise UserError(f"'{folder}' is the report to compare with; choose another output folder.")
    command, measurement = record["command"], record["measurement"]

    def place(name: str) -> str | None:
        value = command.get(name)
        if value is None:
            return None
        if not isinstance(value, str):
            raise UserError(f"'{folder}' does not say what was audited ({name} is no path); audit anew.")
        if is_endpoint(value):  # whose asking would show pictures, and perhaps a token, to whoever wrote this
            raise UserError(f"The report names the endpoint {value}; name it yourself in an audit with its --seed.")
        there = folder / value
        return str(there.resolve()) if there.exists() else value

    before, after, images = place("before"), place("after"), place("images")
    if before is None or after is None or images is None:
        raise UserError(f"'{folder}' does not say what was audited; audit anew.")
    try:
        views = measurement["views"]
        drawn = views if isinstance(views, dict) else {}
        sources = measurement["encoders"].values()
        given = {
            "views": drawn.get("family"),
            "view_side": drawn.get("size"),
            "view_count": measurement["view_count"] if drawn else None,
            "most_views": measurement["view_count"],
            "features": next((source["features"] for source in sources if "features" in source), None),
            "backend": measurement["processor_backend"],
            "device": device or measurement["device"],
            **{name: measurement[name] for name in ("seed", "audits")},
        }
        provenance = {Arm(arm["arm"]): arm["provenance"] for arm in record["results"][0]["arms"]}
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise UserError(f"'{folder}' does not say how it was measured ({error}); audit anew.") from error
    mixed_in = place("decoys") if measurement.get("decoys") else None  # older reports name those left out, too
    others = {name: place(name) for name in ("still_trained", "never_trained", "captions", "plan")}
    again = run_audit(
        before,
        after,
        images,
        output_dir,
        **others,  # type: ignore[arg-type]
        decoys=mixed_in,
        provenance=provenance,
        settings=AuditSettings(**given),
        overwrite=overwrite,
    )
    first = {result.owner: result for result in map(AuditResult.from_dict, record["results"])}
    return compare_audits(first, {result.owner: result for result in again.results.values()})


def compare_audits(first: dict[str, AuditResult], again: dict[str, AuditResult]) -> Comparison:
    """Two audits of the same owners, picture by picture."""
    differences, unanswered, unmatched = [0.0], 0, set()
    for owner in first.keys() | again.keys():
        rows = [{row.sha256: row for row in found[owner].images} if owner in found else {} for found in (first, again)]
        unmatched |= {
            row.image for key in rows[0].keys() ^ rows[1].keys() for row in [rows[0].get(key) or rows[1][key]]
        }
        for key in rows[0].keys() & rows[1].keys():
            one, two = rows[0][key], rows[1][key]
            for pair in ((one.before, two.before), (one.after, two.after)):
                missing = sum(map(math.isnan, pair))
                differences.append((abs(pair[0] - pair[1]), math.inf, 0.0)[missing])
                unanswered += missing == 1
    verdicts = {
        owner: tuple(found[owner].verdict.value if owner in found else "not audited" for found in (first, again))
        for owner in sorted(first.keys() | again.keys())
    }
    return Comparison(verdicts, max(differences), tuple(sorted(unmatched)), unanswered)  # type: ignore[arg-type]


def read_report(folder: Path) -> Fields:
    """Read a finished audit's record.

    Raises:
        UserError: When there is none, or it is damaged or of an older library.
    """
    path = folder / REPORT_FILE
    try:
        record = read_json(path)
        complete = {"command", "measurement", "results"} <= set(record) and "audits" in record["measurement"]
        complete = complete and isinstance(record["command"], dict)
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise UserError(
            f"'{folder}' holds no readable finished audit ({error}); give the folder of a report."
        ) from error
    if not complete:
        raise UserError(f"'{path}' was written by an older version, which kept too little to repeat it; audit anew.")
    return record
