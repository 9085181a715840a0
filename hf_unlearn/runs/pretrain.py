"""Trainings from scratch, cached: the base models of the embedded tasks, and Retrain."""

import hashlib
import json
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from datasets import DatasetDict
from transformers import PreTrainedModel

from hf_unlearn.data.config import DataConfig
from hf_unlearn.data.encoded import EncodedSplit
from hf_unlearn.data.fingerprint import dataset_sha256
from hf_unlearn.data.openmoji import cache_folder
from hf_unlearn.data.resizing import Processor
from hf_unlearn.data.streaming import StreamedSplit
from hf_unlearn.distributed import world_size
from hf_unlearn.errors import UserError
from hf_unlearn.files import finished_folder, write_atomically
from hf_unlearn.methods.retrain import RetrainConfig, RetrainTrainer
from hf_unlearn.models.adapters import lora_settings, merged
from hf_unlearn.models.effective_settings import processor_hash
from hf_unlearn.parsing import read_json
from hf_unlearn.records.schemas import DatasetRecord
from hf_unlearn.records.settings import weight_settings
from hf_unlearn.runs.builders import Builder
from hf_unlearn.runs.command_line import Run
from hf_unlearn.runs.initial import InitialModel
from hf_unlearn.runs.model_cache import alone, is_finished
from hf_unlearn.runs.run_arguments import OPENMOJI
from hf_unlearn.runs.run_data import UnlearningTask
from hf_unlearn.runs.training_log import attach_log, train_on
from hf_unlearn.training.rows import make_preprocessor

if TYPE_CHECKING:
    from peft import LoraConfig

# Raise when a change of the code changes what these trainings give.
CACHE_FORMAT = 1
TIME_NAME = "run_time.json"
MERGED = "Retrain trained an adapter on the initial model, and these are the weights of both together."
BASE_CARD = (
    "---\n{license}library_name: transformers\n---\n\n# {name}\n\nPre-trained by hf_unlearn as the model of a demo.\n"
)


def pretrain(
    task: UnlearningTask,
    model: PreTrainedModel,
    processor: Processor,
    config: RetrainConfig,
    data_config: DataConfig,
    initial: InitialModel | None = None,
) -> Path:
    """Train an architecture on retain and unlearn together, the model people ask to be removed from.

    Args:
        task: the splits.
        model: the architecture; its weights are drawn anew.
        processor: saved beside the weights.
        config: the training.
        data_config: how rows are read and encoded.
        initial: where to start instead.

    Returns:
        The folder of the trained model, in the cache.
    """
    return train_from_scratch(
        lambda: EncodedSplit(task.train, make_preprocessor(model, processor, data_config), data_config.resident_bytes),
        task.dataset,
        model,
        processor,
        config,
        data_config,
        initial=initial,
    )


def pretrain_initial(run: Run, task: UnlearningTask, build: Builder) -> Path:
    """Train a small initial model on the task's initial rows, which no split has; the base model starts there.

    Returns:
        Its folder, in the cache.
    """
    rows = task.initial_rows
    assert rows is not None and run.initial is not None
    splits = DatasetDict(retain=rows, unlearn=rows.select([]))
    own = replace(task, splits=splits, dataset=replace(task.dataset, sha256=dataset_sha256(rows)))
    return pretrain(own, *build(run, own), run.initial, run.data)


def train_from_scratch(
    train: Callable[[], EncodedSplit | StreamedSplit],
    data: DatasetRecord,
    model: PreTrainedModel,
    processor: Processor,
    config: RetrainConfig,
    data_config: DataConfig,
    log: Path | None = None,
    initial: InitialModel | None = None,
    peft_config: "LoraConfig | None" = None,
) -> Path:
    """The folder of a model trained from scratch on given rows; once per data, model, processor and settings.

    A training that was interrupted goes on from its newest checkpoint.

    Args:
        train: gives the rows, encoded or streamed; called only if the cache has no such model.
        data: identifies the rows by their hash, and names the folder.
        model: the architecture.
        processor: prepares the rows, and is saved beside the weights.
        config: the training.
        data_config: how rows are read and encoded.
        log: folder of the run whose log the losses go to.
        initial: where to start, instead of new weights.
        peft_config: an adapter on the initial model that is trained instead of its weights, and then merged with them.

    Raises:
        UserError: when the training diverges.
    """
    architecture = model.config.to_dict()
    key = {
        "format": CACHE_FORMAT,
        "data": data.sha256,
        "model": {k: v for k, v in architecture.items() if k not in ("_name_or_path", "transformers_version")},
        "processor": processor_hash(processor),  # which pixels and tokens the rows become
        "training": {
            **weight_settings(config, data_config),
            "use_cpu": config.device.type == "cpu",  # whether it was asked for or there is nothing else
            "world_size": world_size(),
        },
    }
    if initial is not None:
        key["initial"] = initial.record.sha256
    if peft_config is not None:
        key["adapter"] = lora_settings(peft_config)
    digest = hashlib.sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()
    name = f"{model.config.model_type}-{data.name.rpartition('/')[2]}-{digest[:8]}"
    folder = cache_folder() / name
    if is_finished(folder):
        return folder
    with alone(folder):
        if is_finished(folder):  # another run has trained it meanwhile
            return folder
        title = Path(config.output_dir or "").name or RetrainConfig.method  # the run's section: retrain or pretrain
        config = deepcopy(config)
        config.output_dir = str(folder)
        trainer = RetrainTrainer(
            model,
            config,
            {"retain": train()},
            processing_class=processor,
            data_config=data_config,
            initial_model=initial.model if initial else None,
            peft_config=peft_config,
        )
        attach_log(trainer, title, log)
        seconds = train_on(trainer, folder.name, folder).metrics["train_runtime"]
        if stopped := trainer.stopping_note():
            raise UserError(f"training from scratch failed, and its model is not kept. {stopped}")
        trained = merged(trainer.whole_model())
        if trainer.is_world_process_zero():
            with finished_folder(folder) as temporary:
                trained.save_pretrained(temporary)
                processor.save_pretrained(temporary)
                # OpenMoji's share-alike licence is passed on.
                license = "license: cc-by-sa-4.0\n" if data.name == OPENMOJI else ""
                card = BASE_CARD.format(name=folder.name, license=license)
                (temporary / "README.md").write_text(card, encoding="utf-8")
                write_atomically(temporary / TIME_NAME, json.dumps({"run_time_seconds": seconds}))
        trainer.accelerator.wait_for_everyone()
    return folder


def run_time_seconds(folder: Path) -> float:
    """How long a cached training took when it was made.

    Raises:
        UserError: the file that says so is damaged.
    """
    try:
        return float(read_json(folder / TIME_NAME)["run_time_seconds"])
    except (ValueError, LookupError, TypeError, OverflowError) as error:
        raise UserError(f"{folder / TIME_NAME} is damaged; remove {folder}, which is trained again") from error
