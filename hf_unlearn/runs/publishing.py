"""`trainer.push_to_hub()`: the trained model with its card and records, and nothing of the training."""

from typing import Any

from hf_unlearn.errors import UserError
from hf_unlearn.hub.publishing import PublishResult
from hf_unlearn.hub.trainer_push import push_trainer, trainer_record
from hf_unlearn.training.trainer import UnlearningTrainer


def publish_trainer(trainer: UnlearningTrainer, **options: Any) -> PublishResult | None:
    """Record what a trainer unlearned from its own model, arguments and splits, and publish its model.

    Args:
        trainer: after `train()`.
        options: as `hf_unlearn.hub.trainer_push.push_trainer` takes them.

    Returns:
        What was sent; None on every process but the first.

    Raises:
        UserError: when the trainer was given encoded splits, whose rows can no longer be hashed.
    """
    if trainer.source_splits is None:
        raise UserError("push_to_hub needs the rows that were unlearned; pass train_dataset as a DatasetDict")
    return push_trainer(trainer, trainer_record(trainer, trainer.args.method, trainer.source_splits), **options)


UnlearningTrainer.publish = staticmethod(publish_trainer)
