"""The model that the base model was fine-tuned from: Retrain starts there, and never saw the requested rows."""

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from hf_unlearn.data.config import DataConfig
from hf_unlearn.data.openmoji import cache_folder
from hf_unlearn.data.preprocessing import ContrastivePreprocessor
from hf_unlearn.data.resizing import Processor
from hf_unlearn.distributed import map_across_processes
from hf_unlearn.errors import UserError, listed
from hf_unlearn.files import finished_folder
from hf_unlearn.hub.manifest import describe_base_model
from hf_unlearn.metrics.estimated_gap import ImageTextEvidence
from hf_unlearn.models.adapters import is_adapted
from hf_unlearn.models.checkpoint_forms import save_encoder
from hf_unlearn.models.contrastive import is_dual_encoder
from hf_unlearn.models.effective_settings import differing_settings, processor_hash
from hf_unlearn.models.loading import load_encoder, load_image_processor
from hf_unlearn.models.weights import is_copy
from hf_unlearn.records.file_names import MANIFEST_NAME
from hf_unlearn.records.schemas import COMMIT, BaseModel, UnlearningManifest
from hf_unlearn.runs.builders import Builder
from hf_unlearn.runs.command_line import Run
from hf_unlearn.runs.comparable import other_reading
from hf_unlearn.runs.evaluation import Evaluation, Evaluator, ImageTextEvaluator
from hf_unlearn.runs.model_cache import alone, is_finished
from hf_unlearn.runs.run_arguments import RunArguments
from hf_unlearn.runs.run_data import UnlearningTask
from hf_unlearn.training.features import FeatureEncoder
from hf_unlearn.training.rows import make_preprocessor
from hf_unlearn.training.targets import pair_targets


@dataclass(frozen=True)
class InitialModel:
    """A model that trainings start from, its processor, and what it is called in records."""

    model: PreTrainedModel
    processor: Processor
    record: BaseModel

    @property
    def name(self) -> str:
        """Its name, and its revision on the Hub."""
        return called(self.record)


def called(model: BaseModel) -> str:
    """A recorded model's name, with its revision on the Hub."""
    return model.name_or_path + (f"@{model.revision}" if model.revision else "")


def recorded_initial(record: UnlearningManifest) -> BaseModel | None:
    """The initial model that a record names; those of earlier versions have its name alone, among the settings."""
    named = record.hyper_parameters.get("initial_model")
    if record.initial_model is not None or not isinstance(named, str):
        return record.initial_model
    name, _, commit = named.rpartition("@")
    return BaseModel(name, commit) if COMMIT.fullmatch(commit) else BaseModel(named)


def forgotten_initial(arguments: RunArguments) -> tuple[str, ...]:
    """What is to be said where the base model's record names an initial model, and the run none."""
    folder = Path(arguments.model_name_or_path or "")
    if arguments.initial_model is not None or not (folder / MANIFEST_NAME).is_file():
        return ()
    recorded = recorded_initial(UnlearningManifest.load(folder))
    if recorded is None:
        return ()
    told = f"The record of {folder.name} names the initial model {called(recorded)}, and this run names none: Retrain "
    return (told + "starts from new weights, and nothing is predicted from it. Name it with --initial_model.",)


def load_initial_model(
    arguments: RunArguments, base: PreTrainedModel | None = None, base_processor: Processor | None = None
) -> InitialModel | None:
    """The model of `--initial_model`; None where a run names none.

    Args:
        arguments: the run's.
        base: the model that was fine-tuned from it, where there is one already.
        base_processor: that model's processor.

    Raises:
        UserError: when it cannot be loaded, is an adapter or the base model itself, has other tensors than that, makes
            something else of the same tensors, or knows other words by their numbers.
    """
    name = arguments.initial_model
    if name is None:
        return None
    model, processor = load_encoder(name, arguments.initial_revision, arguments.trust_remote_code)
    if is_adapted(model):
        raise UserError(f"--initial_model {name} is an adapter; merge it (merge_and_unload), and name that folder")
    if base is not None:
        tokenizers: list[Any] = [getattr(each, "tokenizer", None) for each in (processor, base_processor)]
        _require_same_architecture(name, model, base)
        if differing := differing_settings(model.config, base.config, *tokenizers):
            raise UserError(
                f"--initial_model {name} makes something else of its weights than the model ({listed(differing)}); "
                "name the checkpoint that the model was fine-tuned from, or save it with the model's settings"
            )
        if None not in tokenizers:
            _require_same_words(name, *tokenizers)
    record, _ = describe_base_model(name, arguments.initial_revision)
    return InitialModel(model, processor, record)


def reading_notes(
    initial: InitialModel | None, base: ContrastivePreprocessor, data: DataConfig, unlearn: Dataset
) -> tuple[str, ...]:
    """What is to be said where the initial model was made for other pictures, or other tokens of the same words.

    Args:
        initial: the initial model, if there is one.
        base: the base model's preprocessor.
        data: how rows are encoded.
        unlearn: rows, of which both prepare some.
    """
    if initial is None:
        return ()
    found = other_reading(make_preprocessor(initial.model, initial.processor, data), base, unlearn)
    told = f"The initial model {initial.name} does not read rows as the base model does ({listed(found)}): it predicts "
    told += "by its own reading, and what starts from its weights or leads back to them reads as the base model does."
    return (told,) if found else ()


def with_predictions(
    before: Evaluation, initial: InitialModel | None, base: PreTrainedModel, evaluator: Evaluator, sizes: dict[str, int]
) -> Evaluation:
    """The base model's evaluation, with what exact retraining would make of each unlearn pair in its evidence.

    It is predicted as the level of Targeted Calibration's targets is, the initial model's embeddings helping: held-out
    pairs, weighted by their likeness to the request and lowered by what a model loses on them without it. Without an
    initial model, and for views, whose targets are distributed as held-out ones anyway, nothing is predicted. What is
    uncertain about it joins the evaluator's notes.

    Args:
        before: the base model's.
        initial: what the base was fine-tuned from, if that is known.
        base: the model before unlearning, on its device.
        evaluator: of the splits.
        sizes: rows of each split; of the whole of retain where that is a stream.
    """
    evidence = before.evidence
    if initial is None or not (isinstance(evaluator, ImageTextEvaluator) and isinstance(evidence, ImageTextEvidence)):
        return before
    retain, unlearn, unseen = (evaluator.splits[name] for name in ("retain", "unlearn", "validation"))
    encoder = FeatureEncoder(initial.model.to(base.device), initial.processor)  # type: ignore[arg-type]
    ratio = sizes["unlearn"] / sizes["retain"]
    targets = pair_targets(
        base, evaluator.preprocessor, retain, unlearn, unseen, unlearn_to_retain=ratio, encoder=encoder
    )
    evaluator.notes += targets.notes
    captions = np.array([len(row) for row in unlearn.dataset["captions"]])
    predicted = targets.positive[len(retain) :].double().numpy().sum(1) / captions  # 0 beyond a row's last caption
    return replace(before, evidence=replace(evidence, predicted=predicted))


def prepare_vision_model(run: Run, task: UnlearningTask, build: Builder) -> None:
    """Make `--vision_model` with a fresh projection head, seeded as the pre-training is, the run's initial model."""
    arguments = run.arguments
    if arguments.vision_model is None:
        return
    seed = run.pretrain.seed
    vision, _ = describe_base_model(arguments.vision_model, arguments.vision_revision)
    images = processor_hash(load_image_processor(arguments.vision_model, revision=arguments.vision_revision))
    key = json.dumps([vision.sha256, images, build.__name__, run.model, seed], sort_keys=True, default=str)
    folder = cache_folder() / f"initial-{build.__name__}-{hashlib.sha256(key.encode()).hexdigest()[:8]}"

    def make(_: int) -> None:
        with torch.random.fork_rng():
            set_seed(seed)
            model, processor = build(run, task)
        with finished_folder(folder) as temporary:
            save_encoder(model, processor, temporary)

    if not is_finished(folder):
        with alone(folder):
            if not is_finished(folder):  # and no other run has made it meanwhile
                map_across_processes(1, make)
    arguments.initial_model = str(folder)


def _require_same_architecture(name: str, model: PreTrainedModel, base: PreTrainedModel) -> None:
    shapes = [{key: value.shape for key, value in each.state_dict().items()} for each in (model, base)]
    if type(model) is not type(base) or shapes[0] != shapes[1]:
        one, other = shapes
        differing = sorted(key for key in one.keys() | other.keys() if one.get(key) != other.get(key))
        what = ", ".join(differing[:3]) or "its class"
        remedy = "any other encoder can be --target_features" if is_dual_encoder(base) else "or leave it out"
        raise UserError(
            f"--initial_model {name} is another architecture than the model ({what}); name the checkpoint that the "
            f"model was fine-tuned from; {remedy}"
        )
    if is_copy(model.state_dict(), base.state_dict()):
        raise UserError(f"--initial_model {Path(name).name} has the model's own weights; name what it was trained from")


def _require_same_words(name: str, tokenizer: PreTrainedTokenizerBase, base_tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse weights that know other words by the same numbers; words that one of the two adds are in nobody's way."""
    ours, theirs = ({number: word for word, number in each.get_vocab().items()} for each in (tokenizer, base_tokenizer))
    if differing := sorted(number for number in ours.keys() & theirs.keys() if ours[number] != theirs[number]):
        first, count = differing[0], len(differing)
        raise UserError(
            f"--initial_model {name} knows other words by the same numbers than the model ({count} of its tokenizer's "
            f"{len(ours)}: {first} is {ours[first]!r}, the model's {theirs[first]!r}); name the checkpoint that the "
            "model was fine-tuned from, or save the tokenizer that it was trained with beside it"
        )
