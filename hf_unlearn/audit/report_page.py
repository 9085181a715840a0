"""The audit's page: one self-contained `report.html`, whose first screen and first sheet of paper hold the answer."""

import base64
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from markupsafe import Markup
from PIL import Image

from hf_unlearn.audit.finished_audit import AlignmentMatrices, Audit
from hf_unlearn.figures.audit_plots import plot_levels, plot_paired_dots, plot_permutations, plot_power
from hf_unlearn.figures.axis_labels import thumbnail
from hf_unlearn.figures.drawing import MINUS
from hf_unlearn.figures.heatmaps import plot_alignment_matrices
from hf_unlearn.figures.layout import MAX_LABELS
from hf_unlearn.metrics.alignment_matrices import alignment_gap_matrix, diagonal_statistics
from hf_unlearn.parsing import Fields
from hf_unlearn.records.audit_result import Arm, AuditResult, Interval, Verdict

PIXEL_RATIO = 1.6  # pixels of a plot to one of the page: letters come out about as large as the text around them
LONG_TABLE = 20  # rows from which the per-image table scrolls in a window of its own
MOST_THUMBNAILS = 400  # beyond, pictures would make the page tens of megabytes
MOST_IN_STRIP = 60  # pictures that a heatmap without labels shows beside it, by number
MOST_SHOWN = 12  # pictures that stand out, shown on the first page
TONES = {
    Verdict.NO_MODEL_CHANGE: "against",
    Verdict.NO_TARGETED_CHANGE: "against",
    Verdict.RESIDUAL_SIGNAL: "mixed",
    Verdict.RESIDUAL_UNDETERMINED: "mixed",
    Verdict.OVERSHOOT: "mixed",
    Verdict.WITHIN_BAND: "good",
    Verdict.INCONCLUSIVE: "open",
}


def render(audit: Audit) -> str:
    """Draw a finished audit's plots into its folder, which is there, and return the page around them."""
    many = len(audit.results) > 1
    owners = []
    for number, (name, result) in enumerate(audit.results.items(), start=1):
        prefix = f"owner_{number}_" if many else ""
        figures = list(_figures(result, audit.matrices[name], audit.folder, prefix))
        owners.append(_owner(audit, name, f"owner-{number}", figures))
    return _page(audit, owners)


def _figures(
    result: AuditResult, matrices: AlignmentMatrices, folder: Path, prefix: str
) -> Iterator[dict[str, object]]:
    """Draw one owner's plots, each with its heading, caption and words for those who cannot see it."""

    def place(name: str) -> Path:
        return folder / f"{prefix}{name}.png"

    n = len(matrices.pictures)
    path = plot_alignment_matrices(
        matrices.am_before,
        matrices.am_after,
        place("alignment_matrices"),
        images=[picture.open() for picture in matrices.pictures] if n <= MAX_LABELS else None,
        captions=matrices.captions,
    )
    columns = "caption" if matrices.captions else "second view"
    shown = f" The first {n} requested images are shown." if matrices.omitted else ""
    gap = diagonal_statistics(alignment_gap_matrix(matrices.am_before, matrices.am_after))
    yield _figure(
        path,
        "What the models see in the requested images",
        f"Each cell is the cosine between an image (row) and a {columns} (column), averaged over the audit's views; "
        "the same colour means the same value on every panel. On the diagonal stand matching pairs: in the gap matrix "
        "(AGM) that is the forgetting score. Away from it stand pairs of different images. Some methods shift those "
        f"on purpose and exact retraining does not, so they are shown but take no part in the verdict.{shown}",
        f"Three heatmaps of {n} by {n} cells: alignment before, after, and their difference, whose mean is "
        f"{_signed(gap.diagonal_mean)} on the diagonal and {_signed(gap.off_diagonal_mean)} off it.",
        [_picture(picture.open()) for picture in matrices.pictures] if MAX_LABELS < n <= MOST_IN_STRIP else [],
    )
    means = "; ".join(
        f"{summary.arm.words}: {_number(_mean(result, summary.arm, 'before'))} before, "
        f"{_number(_mean(result, summary.arm, 'after'))} after"
        for summary in result.arms
    )
    yield _figure(
        plot_paired_dots(result, place("paired_dots")),
        "Every image, before and after",
        "A line is one image; in large arms, bands hold the middle half and nine tenths of the images. Black marks are "
        "means. What counts is whether the requested images fell further than the others: a fall of all of them alike "
        "is a drift of the model.",
        f"Paired dots by arm. Mean alignment of {means}.",
    )
    if drawn := plot_permutations(result, place("permutations")):
        test = result.tests["T2"]
        yield _figure(
            drawn,
            "The main test: was the change directed at the requested images?",
            "Grey: the difference in forgetting score if chance had decided which images were requested. Line: the "
            "difference that was seen; red is as far out or further. Little red means the change was directed at them.",
            f"Histogram of the permutation distribution; observed difference {_signed(test.statistic)}, "
            f"p = {_p(test.p_value)}.",
        )
    if drawn := plot_levels(result, place("levels")):
        after = result.effects["gap_after"]
        yield _figure(
            drawn,
            "Where the requested images stand now",
            "Zero is the level of images never in training. The green band is half of the gap before to either side; "
            "inside it the two count as equal. Bars are 95% intervals before and, as the band is judged, 90% intervals "
            "after. Held-back rows use transforms of another kind than the audit's own views.",
            f"Requested minus never in training, after: {_signed(after.estimate)}, {_interval(after.interval)}; "
            f"margin {_number(result.margin)}.",
        )
    if drawn := plot_power(result, place("power")):
        yield _figure(
            drawn,
            "What this audit could have seen",
            " ".join(effect.words for effect in result.minimum_detectable_effects),
            "Power curves: chance of finding a true effect by its size, with the minimum detectable effect at "
            f"{result.minimum_detectable_effects[0].power:.0%} power marked.",
        )


def _figure(path: Path, heading: str, caption: str, alt: str, strip: Sequence[str] = ()) -> dict[str, object]:
    with Image.open(path, formats=["PNG"]) as image:
        width, height = image.size
    return {
        "key": path.stem.replace("_", "-"),
        "source": _data_uri(path.read_bytes(), "png"),
        "heading": heading,
        "caption": caption,
        "alt": alt,
        "strip": list(strip),
        "width": round(width / PIXEL_RATIO),
        "height": round(height / PIXEL_RATIO),
    }


def _owner(audit: Audit, name: str, anchor: str, figures: list[dict[str, object]]) -> dict[str, object]:
    """What the template needs of one owner."""
    result = audit.results[name]
    few = len(result.images) <= MOST_THUMBNAILS
    return {
        "name": name,
        "anchor": anchor,
        "result": result,
        "tone": TONES[result.verdict],
        "requested": result.arms[0].size,
        "sizes": [(arm.arm, arm.size, len(arm.collapsed), len(arm.twins)) for arm in result.arms],
        "stability": result.stability_words,
        "left": _left(result),
        "standing_out": [(name, _picture(audit.pictures[name].open())) for name in result.standing_out[:MOST_SHOWN]],
        "long": len(result.images) > LONG_TABLE,
        "figures": figures,
        "held_back": any(row.held_back_before is not None for row in result.images),
        "thumbnails": {row.image: _picture(audit.pictures[row.image].open()) for row in result.images} if few else None,
    }


def _page(audit: Audit, owners: Sequence[Fields]) -> str:
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
    encoders = {
        side: {**found, "label": found.get("name") or found.get("file")}
        for side, found in audit.measurement["encoders"].items()
    }
    requested = sum(owner["requested"] for owner in owners)
    return environment.get_template("report.html").render(
        title=f"{requested} requested images, {len(audit.pictures)} pictures asked about",
        css=Markup(css),
        measurement={**audit.measurement, "encoders": encoders},
        owners=owners,
        adjusted=len(owners) > 1,
        notes=audit.notes,
        facts=_facts(audit, next(iter(audit.results.values()))),
    )


def _facts(audit: Audit, result: AuditResult) -> list[tuple[str, str]]:
    """The measurement as rows of a table, in the order a reader asks."""
    measurement = audit.measurement
    words = " ".join(f"--{name} {value}" for name, value in audit.command.items() if value is not None)
    return [
        *((f"Model {side}", _plain(found)) for side, found in measurement["encoders"].items()),
        ("Views", f"{measurement['view_count']} an image: {_plain(measurement['views'])}"),
        ("Held-back views", _plain(measurement["held_back_views"])),
        ("Picture as it is among the views", "yes" if measurement.get("original_first") else "no"),
        ("Seed", f"{measurement['seed']} (views and random permutations; secret until this report was written)"),
        ("Decoys mixed in", str(measurement.get("decoys", 0))),
        ("Planned audits of this request", str(measurement.get("audits", 1))),
        ("Hash of the captions", measurement.get("captions_sha256") or "no captions"),
        ("Command", f"hf-unlearn audit {words}; to repeat it: hf-unlearn audit --repeat REPORT_FOLDER"),
        ("Image processor backend", measurement["processor_backend"] or "not used"),
        ("Device", measurement["device"] or "not used"),
        ("Noise of repeating a query", "not measured" if result.noise is None else f"{result.noise:.2g}"),
        ("Level of the tests", f"{result.level:g}; {result.multiplicity}"),
        ("Committed plan", result.plan_sha256 or "none: the requested images were chosen, not drawn"),
        ("Measured", f"{measurement['started']} to {measurement['finished']}"),
        ("Versions", _plain(measurement["versions"])),
    ]


def _left(result: AuditResult) -> str | None:
    """How much of the gap before could be left, at most."""
    before, test = result.effects.get("gap_before"), result.tests.get("T3.equivalence")
    if before is None or test is None or test.interval is None or not math.isfinite(test.interval.high):
        return None
    if before.estimate <= 0 or not all(name in result.tests and result.tests[name].passed for name in ("T1", "T2")):
        return None
    share = max(0.0, test.interval.high / before.estimate)
    if share >= 1:
        return None
    return (
        f"At most {share:.0%} of what set these pictures apart before is left (95% sure, if all changed about alike)."
    )


def _plain(value: object) -> str:
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


def _picture(image: Image.Image) -> str:
    buffer = io.BytesIO()
    thumbnail(image, 80).save(buffer, format="JPEG", quality=80)
    return _data_uri(buffer.getvalue(), "jpeg")


def _data_uri(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:z.4f}".replace("-", MINUS) if math.isfinite(value) else "n/a"


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
