"""What a run writes: finished models with their records and cards, heatmaps, and the comparison across methods."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL.Image import Image
from transformers import PreTrainedModel

from hf_unlearn.data.config import DataConfig
from hf_unlearn.data.earlier_rows import EARLIER, REQUEST_COLUMN
from hf_unlearn.data.encoded import EncodedSplit
from hf_unlearn.data.images import to_rgb
from hf_unlearn.data.resizing import Processor
from hf_unlearn.figures.bars import plot_bars
from hf_unlearn.figures.heatmaps import plot_agm_grid, plot_alignment_matrices
from hf_unlearn.hub.card import write_card
from hf_unlearn.hub.drift import drift_notes
from hf_unlearn.hub.manifest import caption_length_of, public_hyper_parameters, record_run
from hf_unlearn.hub.request_levels import Levels, request_statuses
from hf_unlearn.methods import description_of
from hf_unlearn.metrics.alignment_matrices import alignment_gap_matrix, alignment_matrix
from hf_unlearn.metrics.gap import gap_to_retrain
from hf_unlearn.models.adapters import adapter_settings, is_adapted
from hf_unlearn.models.checkpoint_forms import save_encoder
from hf_unlearn.models.contrastive import is_dual_encoder, unwrap
from hf_unlearn.models.weights import weights_sha256
from hf_unlearn.records.schemas import BaseModel, EvaluationRecord, HistoryEntry, Matrices, RequestStatus, Results
from hf_unlearn.runs.evaluation import Evaluation, Evaluator
from hf_unlearn.runs.initial import InitialModel
from hf_unlearn.runs.results import save_results
from hf_unlearn.runs.run_arguments import RunArguments
from hf_unlearn.runs.run_data import UnlearningTask
from hf_unlearn.training.config import UnlearningConfig

logger = logging.getLogger(__name__)

BEFORE = "before"


@dataclass(frozen=True)
class Trained:
    """The model a method ends with, its run time in seconds, and what its card must say of the training."""

    model: PreTrainedModel
    seconds: float
    notes: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()  # what is far off in the model itself
    stopped: str | None = None  # where and why, if the training was ended before its time
    failed: bool = False  # by a loss or gradient that was not finite


class RunReports:
    """The folders, pictures and records of an experiment, which says what was measured on what."""

    task: UnlearningTask
    arguments: RunArguments
    data_config: DataConfig
    processor: Processor
    base_record: BaseModel
    history: tuple[HistoryEntry, ...]
    initial: InitialModel | None
    form: str
    dtype: torch.dtype
    output_dir: Path
    splits: dict[str, EncodedSplit]
    evaluator: Evaluator
    evaluations: dict[str, Evaluation]
    retrain: Evaluation | None

    @property
    def before(self) -> Evaluation:
        """The base model's evaluation."""
        return self.evaluations[BEFORE]

    def _write(self, folder: Path, trained: Trained, evaluation: Evaluation, config: UnlearningConfig) -> None:
        """A finished run's folder: weights, processor, records and heatmaps."""
        kept = trained.model if is_adapted(trained.model) else trained.model.to(dtype=self.dtype)  # type: ignore[call-arg]
        save_encoder(kept, self.processor, folder, self.form)
        dtype = str(self.dtype).removeprefix("torch.")
        rounded = f"The weights were trained in float32, and are saved and measured in {dtype}."
        precision = () if self.dtype == torch.float32 or is_adapted(kept) else (rounded,)
        statuses = self._statuses(evaluation, config.method)
        for note in drift_notes(statuses):
            logger.warning("%s: %s", config.title, note)
        private, salted = self.task.recorded_rows(self.arguments.request_salt, evaluation.alignment)
        record_run(
            folder,
            method=config.method,
            base_model=self.base_record,
            dataset=self.task.dataset,
            request=self.task.request,
            splits=self.task.sizes,
            hyper_parameters={
                **public_hyper_parameters(config),
                **public_hyper_parameters(
                    self.data_config, self.data_config.idle(is_dual_encoder(unwrap(trained.model)))
                ),
                **caption_length_of(self.evaluator.preprocessor),
                **adapter_settings(trained.model),
                **({"initial_model": self.initial.name} if self.initial else {}),
            },
            description=config.description,
            preset=getattr(config, "preset", None),
            split_seed=self.arguments.split_seed,
            seed=config.seed,
            run_time_seconds=trained.seconds,
            retain_sha256=self.task.retain_sha256,
            held_out=salted.held_out,
            parts=salted.parts,
            notes=tuple(
                dict.fromkeys(  # what both the targets and the estimated gap depend on is said once
                    (
                        *trained.notes,
                        *trained.doubts,
                        *precision,
                        *self.task.notes,
                        *self.evaluator.notes,
                        *drift_notes(statuses),
                    )
                )
            ),
            history=self.history,
            initial_model=self.initial.record if self.initial else None,
            family=self.evaluator.family,
        )
        private.save(folder)
        self._write_report(folder, evaluation, config.method)

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
            requests=self._statuses(evaluation, method),
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

    def told_of_earlier_requests(self, after: Evaluation) -> Iterator[str]:
        """A sentence for each earlier request whose rows are measured, and what is to be said of drift."""
        statuses = self._statuses(after, "")[:-1]  # the last one is what was evaluated
        for status in statuses:
            if status.now is not None:
                then = "" if status.then is None else f", which its own run left at {status.then:.1f}"
                yield (
                    f"Request {status.number}: {status.measured} of {status.count} rows are measured, at a mean "
                    f"alignment of {status.now:.1f}{then}; held-out rows are at {status.non_member:.1f}."
                )
        yield from drift_notes(statuses)

    def _statuses(self, after: Evaluation, method: str) -> tuple[RequestStatus, ...]:
        """Where every request that the model has been through stands, from the evaluations before and after."""
        there, nothing = after.earlier is not None, np.empty(0)
        numbers = np.asarray(self.task.splits[EARLIER][REQUEST_COLUMN]) if there else np.empty(0, np.int64)
        began, ended = (
            Levels(
                each.alignment, np.asarray(each.evidence.validation), nothing if each.earlier is None else each.earlier
            )
            for each in (self.before, after)
        )
        left = self.task.earlier_left_at if there else None
        return request_statuses(self.task.past, numbers, began, ended, method, self.task.request.count, left)

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
