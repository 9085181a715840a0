"""What every unlearning recipe does, given how its family's small model is built."""

import logging
from dataclasses import replace
from pathlib import Path

from hf_unlearn.distributed import owned_together
from hf_unlearn.files import refuse_to_write_to
from hf_unlearn.hub.guessing import guessing_note
from hf_unlearn.methods import METHODS
from hf_unlearn.methods.retrain import RetrainTrainer
from hf_unlearn.models.contrastive import is_dual_encoder
from hf_unlearn.records.schemas import Results
from hf_unlearn.runs.builders import Builder, check_family
from hf_unlearn.runs.class_labels import class_labels
from hf_unlearn.runs.command_line import Run
from hf_unlearn.runs.evaluation import view_notes
from hf_unlearn.runs.experiment import Experiment, check_adapters, say_notes
from hf_unlearn.runs.initial import load_initial_model, prepare_vision_model
from hf_unlearn.runs.pretrain import pretrain, pretrain_initial
from hf_unlearn.runs.resuming import RunState, data_key, training_key
from hf_unlearn.runs.run_arguments import refuse_to_write_to_sources
from hf_unlearn.runs.run_data import UnlearningTask, prepare_task
from hf_unlearn.training.config import StartingPoint
from hf_unlearn.training.trainer_arguments import refuse_unfit

logger = logging.getLogger(__name__)


def start(run: Run, build: Builder) -> Experiment:
    """Prepare the data, then the base model: the one the run names, or a small one pre-trained on the data, cached."""
    task = prepare_task(run.arguments)
    return Experiment(run, task, base_model(run, task, build))


def base_model(run: Run, task: UnlearningTask, build: Builder) -> str:
    """Path or Hub id of the model to unlearn from; without one, one is trained from the initial model or from none."""
    if run.arguments.model_name_or_path is not None:
        return run.arguments.model_name_or_path
    prepare_vision_model(run, task, build)
    initial = load_initial_model(run.arguments)
    model, processor = build(run, task) if initial is None else (initial.model, initial.processor)
    check_family(run.family, model)
    # What the methods and earlier trainings cannot do, and what is wrong with the labels, is known before a long one.
    start = StartingPoint(model, run.arguments.use_peft, initial is not None or task.initial_rows is not None)
    for config in run.methods.values():
        refuse_unfit(config, METHODS[config.method].uses, task.splits, start, run.data)
    check_adapters(run, model)
    refuse_unfit(run.pretrain, RetrainTrainer.uses, {"retain": task.train}, replace(start, adapted=False), run.data)
    if run.initial is not None:
        refuse_unfit(run.initial, RetrainTrainer.uses, {"retain": task.initial_rows}, StartingPoint(model), run.data)
    if not is_dual_encoder(model):
        say_notes(view_notes(task.splits, class_labels(task.splits)))
    if task.initial_rows is not None:
        run.arguments.initial_model = str(pretrain_initial(run, task, build))
        initial = load_initial_model(run.arguments)
        assert initial is not None  # it has just been named
        model, processor = initial.model, initial.processor
    return str(pretrain(task, model, processor, run.pretrain, run.data, initial))


def unlearn_and_compare(run: Run, build: Builder) -> Results:
    """Unlearn by each method of the run and compare what they end with; with `--resume`, do what is missing of it.

    Raises:
        UserError: as its parts do, or another run is at work in the output folder.
    """
    arguments, output_dir = run.arguments, Path(run.arguments.output_dir)
    refuse_to_write_to_sources(arguments, output_dir)
    if not arguments.resume:
        refuse_to_write_to(arguments.retrain_model, "--retrain_model", output_dir)
    with owned_together(output_dir, "Another run"):
        state = RunState(output_dir, arguments.resume)
        if not arguments.overwrite:
            state.refuse_to_replace(run.methods)
        task = prepare_task(arguments)
        if note := guessing_note(task.request, sum(task.sizes.values())):
            logger.warning("%s", note)
        state.require(data_key(run.arguments, task) | training_key(run))
        base = base_model(run, task, build)
        experiment = Experiment(run, task, base, state)
        for config in run.methods.values():
            experiment.unlearn(config)
        return experiment.finish()
