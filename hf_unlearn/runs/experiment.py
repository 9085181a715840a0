"""One base model, one request, any number of methods: train, measure, draw, record."""

import logging
from collections.abc import Iterable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from transformers import PreTrainedModel

from hf_unlearn.data.earlier_rows import EARLIER
from hf_unlearn.data.encoded import EncodedSplit
from hf_unlearn.data.streaming import SHUFFLE_BUFFER, StreamedSplit
from hf_unlearn.errors import UserError
from hf_unlearn.files import finished_folder
from hf_unlearn.hub.manifest import describe_base_model
from hf_unlearn.hub.past_requests import PastRequests
from hf_unlearn.methods import METHODS
from hf_unlearn.methods.retrain import RetrainConfig
from hf_unlearn.metrics.estimated_gap import ImageTextEvidence
from hf_unlearn.models.adapters import check_adapter, is_adapted, merged
from hf_unlearn.models.checkpoint_forms import TRANSFORMERS, check_form, located, stored_dtype
from hf_unlearn.models.contrastive import is_dual_encoder, is_sigmoid
from hf_unlearn.models.effective_settings import processor_hash
from hf_unlearn.models.loading import load_encoder
from hf_unlearn.models.weights import has_weights, weights_sha256
from hf_unlearn.records.file_names import MANIFEST_NAME
from hf_unlearn.records.schemas import BaseModel, Results, UnlearningManifest
from hf_unlearn.runs.builders import check_family
from hf_unlearn.runs.class_labels import ZeroShotTask, class_labels
from hf_unlearn.runs.command_line import Run
from hf_unlearn.runs.comparable import refuse_other_reading
from hf_unlearn.runs.evaluation import Evaluation, Evaluator, ImageTextEvaluator, ImageViewEvaluator, view_notes
from hf_unlearn.runs.initial import forgotten_initial, load_initial_model, reading_notes, with_predictions
from hf_unlearn.runs.pretrain import MERGED, run_time_seconds, train_from_scratch
from hf_unlearn.runs.reports import BEFORE, RunReports, Trained
from hf_unlearn.runs.results import ORIGINAL, make_results
from hf_unlearn.runs.resuming import RunState, base_key
from hf_unlearn.runs.run_arguments import RunArguments, get_peft_config
from hf_unlearn.runs.run_data import UnlearningTask
from hf_unlearn.runs.sanity import sanity_notes
from hf_unlearn.runs.training_log import attach_log, train_on
from hf_unlearn.training.config import StartingPoint, UnlearningConfig
from hf_unlearn.training.earlier_requests import EarlierRequests
from hf_unlearn.training.keys import keep_keys_of
from hf_unlearn.training.rows import make_preprocessor
from hf_unlearn.training.shrink_perturb import taken
from hf_unlearn.training.trainer_arguments import refuse_unfit

logger = logging.getLogger(__name__)

RETRAIN = "retrain"


class Experiment(RunReports):
    """Unlearns one request from one base model by several methods, into `output_dir/<method>/`.

    The base model is loaded anew for every method and never written to. The splits are encoded once for all of them.

    Args:
        run: what is unlearned how.
        task: splits and request.
        base: the model before unlearning, a local folder or Hub id.
        state: what has been done of the run; default: nothing.

    Raises:
        UserError: when the model or its processor cannot be loaded, or rows cannot be encoded for it.
    """

    def __init__(self, run: Run, task: UnlearningTask, base: str | Path, state: RunState | None = None) -> None:
        arguments, self.data_config = run.arguments, run.data
        self.task, self.base, self.arguments = task, str(base), arguments
        self.output_dir = Path(arguments.output_dir)
        self.state = state or RunState(self.output_dir)
        self.peft_config = get_peft_config(arguments)
        model, self.processor = self._load_base()
        check_family(run.family, model)
        self.form = self._form(model)
        self.dtype = self._dtype()
        self.base_record, self.history = describe_base_model(self.base, arguments.model_revision)
        self.state.require({**base_key(self.base_record), "processor": processor_hash(self.processor)})
        self.initial = load_initial_model(arguments, model, self.processor)
        self.state.require({"initial_model": self.initial.record.sha256 if self.initial else None})
        if arguments.retrain_model is not None:
            check_retrain(arguments.retrain_model, self.base_record, task)
        preprocessor = make_preprocessor(model, self.processor, run.data)
        if is_dual_encoder(model) and "captions" not in task.splits["unlearn"].column_names:
            raise UserError("an image-text model needs captions; name their column with --caption_column")
        memory = run.data.resident_bytes
        self.splits = {name: EncodedSplit(split, preprocessor, memory) for name, split in task.splits.items()}
        self.training_splits: dict[str, Any] = {**self.splits}
        if EARLIER in task.splits:
            earlier = EarlierRequests.of(task.past, task.splits[EARLIER])
            self.training_splits[EARLIER] = replace(earlier, rows=EncodedSplit(earlier.rows, preprocessor, memory))
        if (retain := task.streamed) is not None:
            buffer = run.data.shuffle_buffer or SHUFFLE_BUFFER
            stream = StreamedSplit(retain.stream, preprocessor, retain.rows, buffer, retain.skip_bad)
            self.training_splits["retain"] = stream
        for config in run.methods.values():
            self.check(config, model)
        self.evaluator = make_evaluator(model, task, self.splits, preprocessor, arguments)
        self.evaluator.notes += forgotten_initial(arguments) if run.methods else ()
        self.evaluator.notes += reading_notes(self.initial, preprocessor, run.data, task.splits["unlearn"])
        trained_here = arguments.model_name_or_path is None and not is_dual_encoder(model)
        said = view_notes(self.splits, class_labels(task.splits)) if trained_here else ()  # before that training
        say_notes(note for note in self.evaluator.notes if note not in said)
        self.device = run.pretrain.device
        before = self.evaluator.evaluate(_on(model, self.device))
        before = with_predictions(before, self.initial, model, self.evaluator, task.sizes)
        self.original = as_original(before, task.past)
        self.evaluations: dict[str, Evaluation] = {BEFORE: before.with_estimated_gap(self.original)}
        self.retrain: Evaluation | None = None
        if arguments.retrain_model is not None:
            self.retrain = self.evaluate(arguments.retrain_model)
        check_adapters(run, model)

    def check(self, config: UnlearningConfig, base: PreTrainedModel | None = None) -> None:
        """Refuse a config whose method could not do with the base model, loaded anew if not given, what it says."""
        start = StartingPoint(base or self._load_base()[0], self.peft_config is not None, self.initial is not None)
        refuse_unfit(config, METHODS[config.method].uses, self.training_splits, start, self.data_config)

    def evaluate(self, name_or_path: str) -> Evaluation:
        """Evaluate a finished checkpoint, wherever it comes from, as this experiment's own.

        Raises:
            UserError: it cannot be loaded, or reads rows otherwise than the base model.
        """
        # An adapter knows a base model on the Hub; a local one it was published without.
        base = self.base if Path(self.base).is_dir() else None
        model, processor = load_encoder(name_or_path, None, self.arguments.trust_remote_code, base)
        own = make_preprocessor(model, processor, self.data_config)
        refuse_other_reading(name_or_path, own, self.evaluator.preprocessor, self.task.splits["unlearn"])
        return self._compared(self.evaluator.evaluate(_on(model, self.device)))

    def train_and_evaluate(
        self, config: UnlearningConfig, name: str | None = None, checkpoints: Path | None = None
    ) -> tuple[Trained, Evaluation]:
        """Run the method of a config and evaluate what it ends with; without `checkpoints`, nothing is written.

        The run called `retrain` (its method's id, unless `name` says otherwise) is what later ones are compared with.

        Args:
            config: the method and its settings.
            name: what the run is called.
            checkpoints: the folder to keep checkpoints in, and to go on from.
        """
        trained = self._train(config, checkpoints)
        keep_keys_of(trained.model, self.evaluator.preprocessor, self._retain)
        if not is_adapted(trained.model):  # what is saved is what is measured
            trained.model.to(dtype=self.dtype).float()  # type: ignore[call-arg]
        evaluation = self._compared(self.evaluator.evaluate(trained.model))
        evaluation.metrics["run_time_minutes"] = trained.seconds / 60
        if (name or config.method) == RETRAIN:
            self.retrain = evaluation
        else:
            kept = is_adapted(trained.model) or "retain" not in METHODS[config.method].uses
            shrunk = None if kept or not config.shrink_perturb else taken(config.shrink_perturb, bool(self.initial))
            doubts = sanity_notes(self.before, evaluation, is_sigmoid(trained.model), shrunk)
            trained = replace(trained, doubts=doubts)
        for note in trained.doubts if PartialState().is_main_process else ():
            logger.warning("%s: %s", config.title, note)
        return trained, evaluation

    def unlearn(self, config: UnlearningConfig) -> Evaluation:
        """Run the method of a config and leave its checkpoint, records and heatmaps in `output_dir/<method>/`.

        A method that the run has finished before is not run again.

        Raises:
            UserError: when the training met numbers that are not finite; its last good state is in the folder.
        """
        folder = self.output_dir / config.method
        self.state.begin()
        if self.state.has_finished(config.method):
            evaluation = self._reload(folder)
            self.retrain = evaluation if config.method == RETRAIN else self.retrain
            self.evaluations[config.method] = evaluation
            return evaluation
        trained, evaluation = self.train_and_evaluate(config, checkpoints=self.state.checkpoints(config.method))
        self.evaluations[config.method] = evaluation
        if PartialState().is_main_process:
            gap = f"{evaluation.metrics['estimated_gap']:.1f}"
            logger.info("%s: %.1f minutes, estimated gap to Retrain %s.", config.title, trained.seconds / 60, gap)
            with finished_folder(folder) as temporary:
                self._write(temporary, trained, evaluation, config)
            self.state.finish(config.method)
        if trained.failed:
            raise UserError(f"{config.title}: {trained.stopped} They are in {folder}; --resume runs the other methods")
        return evaluation

    def results(self) -> Results:
        """The comparison across everything evaluated so far, each with Retrain where it is known by now."""
        if self.retrain is not None:
            for method, evaluation in self.evaluations.items():
                if method not in (BEFORE, RETRAIN):
                    self.evaluations[method] = evaluation.compared_with_retrain(self.retrain)
        retrain = self.retrain.metrics if self.retrain is not None else None
        metrics = {method: evaluation.metrics for method, evaluation in self.evaluations.items()}
        if retrain is not None and RETRAIN not in metrics:
            metrics = {BEFORE: metrics.pop(BEFORE), RETRAIN: retrain, **metrics}
        if self.task.past.original:
            metrics = {ORIGINAL: {k: v for k, v in self.task.past.original.items() if v is not None}, **metrics}
        return make_results(self.evaluator.family, self.evaluator.gap_keys, metrics, retrain)

    def finish(self) -> Results:
        """The comparison; the first process also writes it, draws its plots and shows it on every card."""
        results = self.results()
        if PartialState().is_main_process:
            self._write_comparison(results)
        return results

    def _compared(self, evaluation: Evaluation) -> Evaluation:
        evaluation = evaluation.compared_with(self.before, self.original)
        return evaluation if self.retrain is None else evaluation.compared_with_retrain(self.retrain)

    def _retain(self, rows: int) -> EncodedSplit:
        retain = self.training_splits["retain"]
        return retain.sample(rows) if isinstance(retain, StreamedSplit) else retain

    def _load_base(self) -> tuple[PreTrainedModel, Any]:
        """The base model, anew, and its processor; one that is itself an adapter on another is made whole."""
        model, processor = load_encoder(self.base, self.arguments.model_revision, self.arguments.trust_remote_code)
        if self.peft_config is not None and is_adapted(model):
            raise UserError(
                f"{self.base} is itself an adapter, and a second one would hang on weights that are nowhere; merge it "
                "(merge_and_unload, save_pretrained) and name that folder, with the files of the requests that the "
                "adapter has been through as --earlier_requests, since no record of them lies there; or leave "
                "--use_peft unset"
            )
        return merged(model), processor

    def _form(self, model: PreTrainedModel) -> str:
        """The form that finished models are saved in: the one asked for, or the base model's own."""
        if self.arguments.save_format is not None:
            check_form(model, self.arguments.save_format, self.peft_config is not None, self.processor)
            return self.arguments.save_format
        if self.peft_config is not None or is_adapted(model):
            return TRANSFORMERS
        return located(self.base, self.arguments.model_revision)[1]

    def _dtype(self) -> torch.dtype:
        """The type that finished models are saved in: the one asked for, or the base model's own."""
        wanted = self.arguments.save_dtype
        if wanted is None and self.form == TRANSFORMERS:
            wanted = stored_dtype(self.base, self.arguments.model_revision)
        return getattr(torch, wanted or "float32")

    def _reload(self, folder: Path) -> Evaluation:
        """The evaluation of a method that was finished before; what is to be said of its training is said again."""
        record = UnlearningManifest.load(folder)
        for note in record.notes:
            if note not in (*self.task.notes, *self.evaluator.notes):
                logger.warning("%s: %s", record.method_title, note)
        evaluation = self.evaluate(str(folder))
        evaluation.metrics["run_time_minutes"] = (record.run_time_seconds or 0) / 60
        return evaluation

    def _train(self, config: UnlearningConfig, checkpoints: Path | None) -> Trained:
        """Run a method; with a folder for checkpoints, go on from the newest one there."""
        model, _ = self._load_base()
        log = None if checkpoints is None else self.output_dir
        if isinstance(config, RetrainConfig):  # the same Retrain serves every run on the same rows and settings
            rows = replace(self.task.dataset, sha256=self.task.retain_sha256)
            adapter = self.peft_config if self.initial else None
            folder = train_from_scratch(
                lambda: self.training_splits["retain"],
                rows,
                model,
                self.processor,
                config,
                self.data_config,
                log=log,
                initial=self.initial,
                peft_config=adapter,
            )
            said = (MERGED,) if adapter else ()
            return Trained(_on(load_encoder(str(folder))[0], config.device), run_time_seconds(folder), said)
        config = deepcopy(config)
        if checkpoints is None:  # nothing is to be written
            config.save_strategy, config.checkpoint_minutes = "no", None
        else:
            config.output_dir = str(checkpoints)
        trainer = METHODS[config.method](
            model,
            config,
            self.training_splits,
            processing_class=self.processor,
            peft_config=self.peft_config,
            data_config=self.data_config,
            initial_model=self.initial.model if self.initial else None,
        )
        attach_log(trainer, config.method, log)
        seconds = float(train_on(trainer, config.title, checkpoints).metrics["train_runtime"])
        stopped, failed = trainer.stopping_note(), trainer.guard.failed
        return Trained(trainer.whole_model(), seconds, tuple(trainer.notes), stopped=stopped, failed=failed)


def check_adapters(run: Run, model: PreTrainedModel) -> None:
    """Refuse an adapter that the model cannot have under some method of a run, before any is trained."""
    config = get_peft_config(run.arguments)
    if config is None:
        return
    for frozen in {method.freeze for method in run.methods.values()}:
        check_adapter(model, config, frozen)


def as_original(before: Evaluation, past: PastRequests) -> Evaluation:
    """What is known of the model before any request, from the base model's evaluation and its records.

    Its recorded figures take the place of the base model's, and held-out alignments are lowered by what their mean has
    risen by since. Views are attacked with alignments of now alone, so only what a probe found is replaced.
    """
    original, evidence = past.original, before.evidence
    if not past.runs or original is None:
        return before

    def recorded(*names: str) -> dict[str, float]:
        return {name: value for name in names if (value := original.get(name)) is not None}

    if isinstance(evidence, ImageTextEvidence):
        held_out = np.asarray(evidence.validation) - past.unseen_risen
        known = recorded("cosine_retain", "cosine_validation", "recall_validation")
        predicted = None if evidence.predicted is None else np.asarray(evidence.predicted) - past.unseen_risen
        return replace(before, evidence=replace(evidence, validation=held_out, predicted=predicted, **known))
    if evidence.probe is None:
        return before
    probe = replace(evidence.probe, **recorded("retain_accuracy", "validation_accuracy"))
    return replace(before, evidence=replace(evidence, probe=probe))


def make_evaluator(
    model: PreTrainedModel,
    task: UnlearningTask,
    splits: dict[str, EncodedSplit],
    preprocessor: Any,
    arguments: RunArguments,
) -> Evaluator:
    """The evaluator of a model's family."""
    if is_dual_encoder(model):
        return ImageTextEvaluator(splits, preprocessor, ZeroShotTask.of(class_labels(task.splits), arguments))
    if arguments.prompt_templates:
        raise UserError("prompt_templates need an encoder of pictures and texts, and this one embeds views")
    return ImageViewEvaluator(splits, preprocessor, class_labels(task.splits))


def check_retrain(name_or_path: str, base: BaseModel, task: UnlearningTask) -> None:
    """Refuse the base model, and a checkpoint whose own record says that it is no Retrain, or one on other rows."""
    if has_weights(name_or_path) and weights_sha256(name_or_path) == base.sha256:
        raise UserError(
            f"--retrain_model {name_or_path} is the base model itself; name one trained without the requested rows"
        )
    if not (Path(name_or_path) / MANIFEST_NAME).is_file():
        logger.info("That %s was retrained without the requested rows is taken on trust.", name_or_path)
        return
    record = UnlearningManifest.load(name_or_path)
    if record.method != RetrainConfig.method:
        raise UserError(f"--retrain_model {name_or_path} is of {record.method}, not of retrain; name a Retrain")
    if record.retain_sha256 is not None:
        same = record.retain_sha256 == task.retain_sha256
    else:  # a record that does not tell its rows is compared by its request
        asked, own = record.request, task.request
        same = asked.salted != own.salted or asked.sha256 == own.sha256
    if not same:
        raise UserError(
            f"--retrain_model {name_or_path} was trained on other rows than this run retains; name a Retrain on "
            "the data without this request's rows and those of earlier ones, with the same rows held out, or train one "
            "in this run: --methods retrain and others"
        )


def say_notes(notes: Iterable[str]) -> None:
    """Warn of what a reader of the figures must know."""
    for note in notes:
        logger.warning("%s", note)


def _on(model: PreTrainedModel, device: torch.device) -> PreTrainedModel:
    return model.to(device)  # type: ignore[arg-type]  # the stub of `to` lacks devices
