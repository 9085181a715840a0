"""The audit's report: `audit.json` with every field, PNGs, and one self-contained `report.html`."""

import base64
import io
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from PIL import Image

from hf_unlearn.audit.images import Picture
from hf_unlearn.errors import UserError
from hf_unlearn.figures.audit_plots import ARM_NAMES, plot_levels, plot_paired_dots, plot_permutations, plot_power
from hf_unlearn.figures.axis_labels import thumbnail
from hf_unlearn.figures.drawing import MINUS
from hf_unlearn.figures.heatmaps import plot_alignment_matrices
from hf_unlearn.figures.layout import MAX_LABELS
from hf_unlearn.metrics.alignment_matrices import Matrix, alignment_gap_matrix, diagonal_statistics
from hf_unlearn.records.audit_result import Arm, AuditResult, Interval, Verdict

SCHEMA = 1
REPORT_FILE = "audit.json"  # written last: where it is, the audit is finished
PIXEL_RATIO = 1.6  # pixels of a plot to one of the page: letters come out about as large as the text around them
LONG_TABLE = 60  # rows from which the per-image table scrolls in a window of its own
MOST_THUMBNAILS = 400  # beyond, pictures would make the page tens of megabytes
TONES = {
    Verdict.NO_MODEL_CHANGE: "against",
    Verdict.NO_TARGETED_CHANGE: "against",
    Verdict.RESIDUAL_SIGNAL: "mixed",
    Verdict.RESIDUAL_UNDETERMINED: "mixed",
    Verdict.OVERSHOOT: "mixed",
    Verdict.WITHIN_BAND: "good",
    Verdict.INCONCLUSIVE: "open",
}


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
    """

    results: Mapping[str, AuditResult]
    matrices: Mapping[str, AlignmentMatrices]
    pictures: Mapping[str, Picture]
    measurement: Mapping[str, Any]
    notes: tuple[str, ...]
    folder: Path

    @property
    def result(self) -> AuditResult:
        """The only owner's result.

        Raises:
            UserError: When there are several owners.
        """
        if len(self.results) != 1:
            raise UserError(f"The audit has {len(self.results)} owners; look into 'results'.")
        return next(iter(self.results.values()))


def write_report(audit: Audit) -> Path:
    """Write PNGs, `report.html` and, last, `audit.json` into the audit's folder.

    Args:
        audit: A finished audit.

    Returns:
        The path of `report.html`.
    """
    folder = audit.folder
    folder.mkdir(parents=True, exist_ok=True)
    many = len(audit.results) > 1
    owners = []
    for number, (name, result) in enumerate(audit.results.items(), start=1):
        prefix = f"owner_{number}_" if many else ""
        figures = _figures(result, audit.matrices[name], folder, prefix)
        owners.append(_owner(audit, name, f"owner-{number}", figures))
    page = folder / "report.html"
    _write(page, _render(audit, owners))
    _write(folder / REPORT_FILE, json.dumps(to_json(audit), indent=1, allow_nan=False, ensure_ascii=False) + "\n")
    return page


def to_json(audit: Audit) -> dict[str, Any]:
    """Everything the audit found, as strict JSON values.

    Args:
        audit: A finished audit.

    Returns:
        A dict with `schema`, `kind`, `measurement`, `notes`, one result an owner, and the matrices (null where a cell
        has no value).
    """
    return {
        "schema": SCHEMA,
        "kind": "black-box",
        "family": audit.measurement["family"],
        "measurement": dict(audit.measurement),
        "notes": list(audit.notes),
        "results": [result.to_dict() for result in audit.results.values()],
        "matrices": [
            {
                "owner": owner,
                "labels": [picture.name for picture in matrices.pictures],
                "captions": list(matrices.captions) if matrices.captions else None,
                "omitted": matrices.omitted,
                "am_before": _cells(matrices.am_before),
                "am_after": _cells(matrices.am_after),
                "agm": _cells(alignment_gap_matrix(matrices.am_before, matrices.am_after)),
            }
            for owner, matrices in audit.matrices.items()
        ],
    }


def _figures(result: AuditResult, matrices: AlignmentMatrices, folder: Path, prefix: str) -> list[dict[str, Any]]:
    """Draw one owner's plots, each with its heading, caption and words for those who cannot see it."""
    drawn = (
        _matrices_figure(matrices, folder / f"{prefix}alignment_matrices.png"),
        _pairs_figure(result, folder / f"{prefix}paired_dots.png"),
        _permutations_figure(result, folder / f"{prefix}permutations.png"),
        _levels_figure(result, folder / f"{prefix}levels.png"),
        _power_figure(result, folder / f"{prefix}power.png"),
    )
    return [figure for figure in drawn if figure is not None]


def _matrices_figure(matrices: AlignmentMatrices, path: Path) -> dict[str, Any]:
    n = len(matrices.pictures)
    plot_alignment_matrices(
        matrices.am_before,
        matrices.am_after,
        path,
        images=[picture.open() for picture in matrices.pictures] if n <= MAX_LABELS else None,
        captions=matrices.captions,
    )
    columns = "caption" if matrices.captions else "second view"
    shown = f" The first {n} requested images are shown." if matrices.omitted else ""
    gap = diagonal_statistics(alignment_gap_matrix(matrices.am_before, matrices.am_after))
    return _figure(
        path,
        "What the models see in the requested images",
        f"Each cell is the cosine between an image (row) and a {columns} (column), averaged over the audit's views; "
        "the same colour means the same value on every panel. On the diagonal stand matching pairs: in the gap matrix "
        "(AGM) that is the forgetting score. Away from it stand pairs of different images. Some methods shift those "
        f"on purpose and exact retraining does not, so they are shown but take no part in the verdict.{shown}",
        f"Three heatmaps of {n} by {n} cells: alignment before, after, and their difference, whose mean is "
        f"{_signed(gap.diagonal_mean)} on the diagonal and {_signed(gap.off_diagonal_mean)} off it.",
    )


def _pairs_figure(result: AuditResult, path: Path) -> dict[str, Any]:
    means = "; ".join(
        f"{ARM_NAMES[summary.arm]}: {_number(_mean(result, summary.arm, 'before'))} before, "
        f"{_number(_mean(result, summary.arm, 'after'))} after"
        for summary in result.arms
    )
    return _figure(
        plot_paired_dots(result, path),
        "Every image, before and after",
        "A line is one image; black marks are means. What counts is whether the requested images fell further than "
        "the others: a fall of all of them alike is a drift of the model.",
        f"Paired dots by arm. Mean alignment of {means}.",
    )


def _permutations_figure(result: AuditResult, path: Path) -> dict[str, Any] | None:
    if plot_permutations(result, path) is None:
        return None
    test = result.tests["T2"]
    return _figure(
        path,
        "The main test: was the change directed at the requested images?",
        "Grey: the difference in forgetting score if chance had decided which images were requested. Line: the "
        "difference that was seen; red is as far out or further. Little red means the change was directed at them.",
        f"Histogram of the permutation distribution; observed difference {_signed(test.statistic)}, "
        f"p = {_p(test.p_value)}.",
    )


def _levels_figure(result: AuditResult, path: Path) -> dict[str, Any] | None:
    if plot_levels(result, path) is None:
        return None
    after = result.effects["gap_after"]
    return _figure(
        path,
        "Where the requested images stand now",
        "Zero is the level of images never in training. The green band is half of the gap before to either side; "
        "inside it the two count as equal. Held-back rows use transforms of another kind than the audit's own views.",
        f"Requested minus never in training, after: {_signed(after.estimate)}, {_interval(after.interval)}; "
        f"margin {_number(result.margin)}.",
    )


def _power_figure(result: AuditResult, path: Path) -> dict[str, Any] | None:
    if plot_power(result, path) is None:
        return None
    return _figure(
        path,
        "What this audit could have seen",
        " ".join(effect.words for effect in result.minimum_detectable_effects),
        "Power curves: chance of finding a true effect by its size, with the minimum detectable effect at "
        f"{result.minimum_detectable_effects[0].power:.0%} power marked.",
    )


def _figure(path: Path, heading: str, caption: str, alt: str) -> dict[str, Any]:
    with Image.open(path, formats=["PNG"]) as image:
        width, height = image.size
    return {
        "key": path.stem.replace("_", "-"),
        "source": _data_uri(path.read_bytes(), "png"),
        "heading": heading,
        "caption": caption,
        "alt": alt,
        "width": round(width / PIXEL_RATIO),
        "height": round(height / PIXEL_RATIO),
    }


def _owner(audit: Audit, name: str, anchor: str, figures: list[dict[str, Any]]) -> dict[str, Any]:
    """What the template needs of one owner."""
    result = audit.results[name]
    few = len(result.images) <= MOST_THUMBNAILS
    return {
        "name": name,
        "anchor": anchor,
        "result": result,
        "tone": TONES[result.verdict],
        "requested": result.arms[0].size,
        "long": len(result.images) > LONG_TABLE,
        "figures": figures,
        "held_back": any(row.held_back_before is not None for row in result.images),
        "thumbnails": {row.image: _picture(audit.pictures[row.image].open()) for row in result.images} if few else None,
    }


def _render(audit: Audit, owners: list[dict[str, Any]]) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("hf_unlearn.audit"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(signed=_signed, number=_number, interval=_interval, p=_p)
    loader = environment.loader
    assert loader is not None
    css = loader.get_source(environment, "report.css")[0]
    measurement = {**audit.measurement, "encoders": _labelled(audit.measurement["encoders"])}
    requested = sum(owner["requested"] for owner in owners)
    return environment.get_template("report.html").render(
        title=f"{requested} requested images, {len(audit.pictures)} in all",
        css=Markup(css),
        measurement=measurement,
        owners=owners,
        adjusted=len(owners) > 1,
        arm_names=ARM_NAMES,
        notes=audit.notes,
        facts=_facts(audit, next(iter(audit.results.values()))),
    )


def _labelled(encoders: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    return {side: {**found, "label": found.get("name") or found.get("file")} for side, found in encoders.items()}


def _facts(audit: Audit, result: AuditResult) -> list[tuple[str, str]]:
    """The measurement as rows of a table, in the order a reader asks."""
    measurement = audit.measurement
    facts = [(f"Model {side}", _plain(found)) for side, found in measurement["encoders"].items()]
    facts += [
        ("Views", f"{measurement['view_count']} an image: {_plain(measurement['views'])}"),
        ("Held-back views", _plain(measurement["held_back_views"])),
        ("Seed", f"{measurement['seed']} (views and random permutations)"),
        ("Image processor backend", measurement["processor_backend"] or "not used"),
        ("Device", measurement["device"] or "not used"),
        ("Noise of repeating a query", "not measured" if result.noise is None else f"{result.noise:.2g}"),
        ("Level of the tests", f"{result.level:g}; {result.multiplicity}"),
        ("Committed plan", result.plan_sha256 or "none: the requested images were chosen, not drawn"),
        ("Measured", f"{measurement['started']} to {measurement['finished']}"),
        ("Versions", _plain(measurement["versions"])),
    ]
    return facts


def _plain(value: Any) -> str:
    """A mapping as `key value, key value`; empty entries left out."""
    if value is None:
        return "none"
    if isinstance(value, Mapping):
        items = [(key, item) for key, item in value.items() if item is not None]
        return ", ".join(f"{key.replace('_', ' ')} {_plain(item)}" for key, item in items)
    if isinstance(value, list | tuple):
        return " to ".join(map(str, value)) if len(value) == 2 else " / ".join(map(str, value))
    return str(value)


def _mean(result: AuditResult, arm: Arm, name: str) -> float:
    values = [getattr(row, name) for row in result.images if row.arm is arm]
    return float(np.mean(values))


def _cells(matrix: Matrix) -> list[list[float | None]]:
    """Six decimals: more than any encoder's noise, a third of the size."""
    return [[round(value, 6) if math.isfinite(value) else None for value in row] for row in matrix.tolist()]


def _picture(image: Image.Image) -> str:
    buffer = io.BytesIO()
    thumbnail(image, 80).save(buffer, format="JPEG", quality=80)
    return _data_uri(buffer.getvalue(), "jpeg")


def _data_uri(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.4f}".replace("-", MINUS) if math.isfinite(value) else "n/a"


def _signed(value: float) -> str:
    return f"{value:+.4f}".replace("-", MINUS) if math.isfinite(value) else "n/a"


def _interval(interval: Interval | None) -> str:
    if interval is None:
        return "–"
    low = f"{interval.low:+.4f}" if math.isfinite(interval.low) else "unbounded"
    high = f"{interval.high:+.4f}" if math.isfinite(interval.high) else "unbounded"
    return f"{low} to {high} ({interval.confidence:.0%})".replace("-", MINUS)


def _p(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.3f}" if value >= 0.001 else f"{value:.1e}".replace("-", MINUS)


def _write(path: Path, text: str) -> None:
    """Write through a temporary file, so that a killed run leaves no half of it."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
