"""What a run writes beside weights: cards, heatmaps, and the comparison across methods."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL.Image import Image

from hf_unlearn.data.encoded import EncodedSplit
from hf_unlearn.data.images import to_rgb
from hf_unlearn.figures.bars import plot_bars
from hf_unlearn.figures.heatmaps import plot_agm_grid, plot_alignment_matrices
from hf_unlearn.hub.card import write_card
from hf_unlearn.methods import description_of
from hf_unlearn.metrics.alignment_matrices import alignment_gap_matrix, alignment_matrix
from hf_unlearn.metrics.gap import gap_to_retrain
from hf_unlearn.models.weights import weights_sha256
from hf_unlearn.records.schemas import EvaluationRecord, Matrices, Results
from hf_unlearn.runs.evaluation import (
    Evaluation,
    Evaluator,
)
from hf_unlearn.runs.request_statuses import request_statuses
from hf_unlearn.runs.results import save_results
from hf_unlearn.runs.run_arguments import RunArguments
from hf_unlearn.runs.run_data import UnlearningTask

BEFORE = "before"


class RunReports:
    """The pictures and records of an experiment, which says what was measured on what."""

    task: UnlearningTask
    arguments: RunArguments
    output_dir: Path
    splits: dict[str, EncodedSplit]
    evaluator: Evaluator
    evaluations: dict[str, Evaluation]
    retrain: Evaluation | None

    @property
    def before(self) -> Evaluation:
        """The base model's evaluation."""
        return self.evaluations[BEFORE]

    def _write_comparison(self, results: Results) -> None:
        save_results(results, self.output_dir)
        assets = self.output_dir / "assets"
        assets.mkdir(exist_ok=True)
        shown = {m: e for m, e in self.evaluations.items() if m != BEFORE}
        names = {method: description_of(method).title for method in shown}
        gaps = {names[m]: alignment_gap_matrix(self._matrix(self.before), self._matrix(e)) for m, e in shown.items()}
        plot_agm_grid(gaps, assets / "agm_by_method.png", **self._axes())
        bars = {
            names[m]: (e.metrics["negative_alignment"], e.metrics["negative_alignment_std"])
            for m, e in shown.items()
            if "negative_alignment" in e.metrics
        }
        if bars:
            plot_bars(bars, assets / "negative_alignment.png", ylabel="negative alignment gap (×100)")
        for method, evaluation in shown.items():
            self._write_report(self.output_dir / method, evaluation, method)

    def _write_report(self, folder: Path, evaluation: Evaluation, method: str) -> None:
        """The card with what it shows: heatmaps, and every number and matrix behind them in `evaluation.json`.

        With the gap to Retrain where Retrain is known. The heatmaps are drawn anew with the record, which says whether
        they show pictures: a run that went on with other options must not leave old ones beside it.
        """
        heatmaps = folder / "assets" / "alignment_matrices.png"
        heatmaps.unlink(missing_ok=True)
        am_before, am_after = self._matrix(self.before), self._matrix(evaluation)
        record = EvaluationRecord(
            family=self.evaluator.family,
            metrics=dict(evaluation.metrics),
            before=dict(self.before.metrics),
            original=self.task.past.original,
            requests=request_statuses(self.task, self.before, evaluation, method),
            gap_keys=self.evaluator.gap_keys,
            per_sample={"forgetting_score": tuple((self.before.alignment - evaluation.alignment).tolist())},
            matrices=Matrices(
                labels=tuple(self._labels()),
                shows_pictures=bool(self.arguments.show_samples),
                am_before=_rows(am_before),
                am_after=_rows(am_after),
                agm=_rows(alignment_gap_matrix(am_before, am_after)),
            ),
            weights_sha256=weights_sha256(folder),
        )
        if self.retrain is not None:
            gap = gap_to_retrain(evaluation.metrics, self.retrain.metrics, self.evaluator.gap_keys)
            record = replace(record, retrain=dict(self.retrain.metrics), avg_gap=gap.average)
        record.save(folder)
        plot_alignment_matrices(am_before, am_after, heatmaps, title=description_of(method).title, **self._axes())
        write_card(folder)

    @property
    def _shown(self) -> int:
        return min(self.arguments.audit_samples, len(self.splits["unlearn"]))

    def _matrix(self, evaluation: Evaluation) -> np.ndarray:
        """AM over the first unlearn samples, the same ones for every checkpoint."""
        return alignment_matrix(evaluation.x[: self._shown], evaluation.y[: self._shown])

    def _labels(self) -> list[str]:
        rows = self.task.splits["unlearn"].select(range(self._shown))
        if self.arguments.show_samples and "captions" in rows.column_names:
            return [captions[0] for captions in rows["captions"]]
        return [f"sample {i + 1}" for i in range(self._shown)]

    def _axes(self) -> dict[str, Any]:
        """What the heatmaps show on their axes: pictures and captions of the samples, or numbers."""
        captioned = self.evaluator.family == "image-text"
        if not self.arguments.show_samples:
            return {"column_kind": "captions" if captioned else "views"}
        rows = self.task.splits["unlearn"].select(range(self._shown))
        images: list[Image] = [to_rgb(image) for image in rows["image"]]
        return {"images": images, "captions": self._labels() if captioned else None}


def _rows(matrix: np.ndarray) -> tuple[tuple[float | None, ...], ...]:
    return tuple(tuple(row) for row in matrix.round(6).tolist())
