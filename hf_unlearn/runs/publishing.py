"""`trainer.push_to_hub()`: the trained model with its card and records, and nothing of the training."""

from functools import partial
from pathlib import Path
from typing import Any

from datasets import concatenate_datasets

from hf_unlearn.data.fingerprint import combine_hashes, dataset_sha256, row_hashes
from hf_unlearn.errors import UserError
from hf_unlearn.hub.manifest import BaseModel, DatasetRecord, HistoryEntry, RequestRecord, UnlearningManifest
from hf_unlearn.hub.provenance import has_weights
from hf_unlearn.hub.publishing import PublishResult
from hf_unlearn.hub.recording import describe_base_model, public_hyper_parameters, record_run
from hf_unlearn.hub.trainer_push import push_trainer
from hf_unlearn.methods import UnlearningTrainer


def publish_trainer(trainer: UnlearningTrainer, **options: Any) -> PublishResult | None:
    """Record what a trainer unlearned from its own model, arguments and splits, and publish its model.

    Args:
        trainer: after `train()`.
        options: as `hf_unlearn.hub.trainer_push.push_trainer` takes them.

    Returns:
        What was sent; None on every process but the first.
    """
    return push_trainer(trainer, partial(record_trainer, trainer), **options)


def record_trainer(trainer: UnlearningTrainer, folder: Path) -> UnlearningManifest:
    """Write `unlearning.json` into the folder of a trainer's saved model.

    Raises:
        UserError: when the trainer was given encoded splits, whose rows can no longer be hashed.
    """
    splits = trainer.source_splits
    if splits is None:
        raise UserError("push_to_hub needs the rows that were unlearned; pass train_dataset as a DatasetDict")
    base, history = _base_model(trainer.base_name)
    rows = [splits[name] for name in ("retain", "unlearn") if name in splits]
    unlearn = splits["unlearn"] if "unlearn" in splits else rows[0].select([])
    return record_run(
        folder,
        method=trainer.args.method,
        base_model=base,
        history=history,
        dataset=DatasetRecord("custom", sha256=dataset_sha256(concatenate_datasets(rows))),
        request=RequestRecord("split", len(unlearn), combine_hashes(row_hashes(unlearn))),
        splits={
            name: len(splits[name]) if name in splits else 0 for name in ("retain", "unlearn", "validation", "test")
        },
        hyper_parameters=public_hyper_parameters(trainer.args),
        preset=getattr(trainer.args, "preset", None),
        seed=trainer.args.seed,
        run_time_seconds=trainer.run_time_seconds,
    )


def _base_model(name: str) -> tuple[BaseModel, tuple[HistoryEntry, ...]]:
    """The model that was loaded, or its bare name where it has no checkpoint (weights made in the program)."""
    if not name or (Path(name).is_dir() and not has_weights(name)):
        return BaseModel(Path(name).name or "unsaved"), ()
    return describe_base_model(name)


UnlearningTrainer.publish = staticmethod(publish_trainer)
