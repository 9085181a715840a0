"""What a Trainer is given, checked before anything is made of it, and by a run before it trains anything."""

import logging
from collections.abc import Mapping
from functools import cache
from typing import Any, NoReturn, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset
from torch import nn

from hf_unlearn.data.columns import arrow_column
from hf_unlearn.data.config import DataConfig
from hf_unlearn.data.fingerprint import row_hashes
from hf_unlearn.data.streaming import StreamedSplit
from hf_unlearn.errors import UserError, listed
from hf_unlearn.files import refuse_unwritable
from hf_unlearn.models.adapters import is_adapted
from hf_unlearn.models.contrastive import is_contrastive
from hf_unlearn.models.origin import lies_in_origin
from hf_unlearn.training.config import StartingPoint, UnlearningConfig
from hf_unlearn.training.rows import Stream, checked_sizes

logger = logging.getLogger(__name__)

COMPARED = 16  # rows of an id that another split has, too
_NO_EFFECT = {
    **dict.fromkeys(
        ("compute_metrics", "preprocess_logits_for_metrics", "compute_loss_func"),
        "since methods have their own losses and evaluation has no predictions; leave it unset, and measure the "
        "trained model with hf-unlearn evaluate",
    ),
    "data_collator": "since rows are encoded once and drawn as whole batches; leave it unset, and see data_config",
    "model_init": "since a method starts from the given weights; pass the model, and search settings with hf-unlearn "
    "tune",
}


def refuse_unusable(
    config_class: type[UnlearningConfig], model: object, args: object, splits: object, options: Mapping[str, object]
) -> None:
    """Refuse what a Trainer could make nothing of, or something else than was meant.

    Args:
        config_class: The config of the Trainer's method.
        model: What it was given as the model.
        args: And as its config.
        splits: And as the rows.
        options: Further arguments of `transformers.Trainer`.

    Raises:
        UserError: The model is not loaded or embeds no pairs, the config is another method's, its output_dir cannot be
            written to, an argument would have no effect, or a row is in two splits.
    """
    for name, reason in _NO_EFFECT.items():
        if options.get(name) is not None:
            raise UserError(f"{name} would have no effect, {reason}")
    if not hasattr(model, "config"):
        raise UserError(
            f"model is a {type(model).__name__}, no loaded model; load it with its processor: load_encoder(NAME)"
        )
    if not is_contrastive(cast("nn.Module", model)):
        raise UserError(
            f"model is a {type(model).__name__}, which embeds no pairs: it needs get_image_features and "
            "get_text_features, or a function registered in hf_unlearn.models.contrastive.terms_from_outputs"
        )
    if not is_adapted(model) and any(hasattr(part, "base_layer") for part in cast("nn.Module", model).modules()):
        raise UserError(
            "model has the layers of an adapter and is no PeftModel, so what is saved of it could not be loaded; pass "
            "the PeftModel itself, or what its unload() or merge_and_unload() returns, or load the model anew"
        )
    if getattr(args, "method", None) != config_class.method:
        raise UserError(
            f"args is a {type(args).__name__}, and this method takes a {config_class.__name__}; pass one of these"
        )
    _refuse_output(cast("nn.Module", model), cast("UnlearningConfig", args))
    for name, split in splits.items() if isinstance(splits, Mapping) else ():
        if isinstance(split, list | tuple):
            raise UserError(f"the split {name} is a list; make a Dataset of it (Dataset.from_list)")
    if isinstance(splits, Mapping):
        _refuse_shared_rows({name: split for name, split in splits.items() if isinstance(split, Dataset)})


def _refuse_output(model: nn.Module, args: UnlearningConfig) -> None:
    """Refuse an output folder that could not be made or written to, which would be found out after all else is done."""
    folder = str(args.output_dir)
    if args.should_save and not lies_in_origin(model, folder):  # which is refused by whatever would write there
        refuse_unwritable(folder, "output_dir")


def _refuse_shared_rows(splits: Mapping[str, Dataset]) -> None:
    """Refuse rows that are in two splits, by their ids, or by what they show and say where there are none."""
    hashes = cache(lambda name: row_hashes(splits[name]))  # reads every picture
    for name, other in (("retain", "unlearn"), ("validation", "retain"), ("validation", "unlearn")):
        if not {name, other} <= splits.keys():
            continue
        if all("id" in splits[each].column_names for each in (name, other)):
            shared = _shared_ids(splits[name], splits[other], numbered_apart=name != "retain")
        else:
            shared = [f"row {place} of {name}" for place in np.flatnonzero(np.isin(hashes(name), hashes(other)))]
            if shared and name == "validation":  # they may be other rows that show the same
                logger.warning(
                    "%d rows of validation show and say what rows of %s do (%s): if the model was trained on them, "
                    "targets and figures that are read off validation are wrong.",
                    len(shared),
                    other,
                    listed(shared),
                )
                continue
        if shared:
            raise UserError(
                f"{len(shared):,} rows are in both splits, {name} and {other}: {listed(shared)}; leave each in one, as "
                "make_splits does"
            )


def _shared_ids(split: Dataset, other: Dataset, *, numbered_apart: bool) -> list[str]:
    """Ids that both splits have; where each may count its rows from 0, one of the first has to show the same."""
    ids, others = (pc.cast(arrow_column(each, "id"), "string") for each in (split, other))
    shared: list[str] = pc.unique(ids.filter(pc.is_in(ids, value_set=others))).to_pylist()
    alike = (_picture(split, ids, row) == _picture(other, others, row) for row in shared[:COMPARED])
    return [] if numbered_apart and not any(alike) else shared


def _picture(split: Dataset, ids: pa.ChunkedArray, row: str) -> object:
    """The picture of a row as it is stored, or what stands in its place."""
    plain = split.select_columns("image").with_format("arrow")
    return plain[pc.index(ids, row).as_py()].column("image").to_pylist()[0]


def refuse_unfit(
    args: UnlearningConfig,
    uses: tuple[str, ...],
    splits: Mapping[str, Any],
    start: StartingPoint,
    data: DataConfig,
    own_schedule: bool = False,
) -> None:
    """Refuse what a method could not do with these rows and this model.

    Args:
        args: The method's config.
        uses: Names of the splits that the method learns from.
        splits: Rows by the name of their split, encoded or not.
        start: The model, and how it is to be trained.
        data: The settings of the data.
        own_schedule: Whether the Trainer was given a schedule, instead of that of the config.

    Raises:
        UserError: As `checked_sizes` and the config's `check_for` do, when a setting of the data would have no effect,
            when checkpoints would hold no optimiser, when new weights would never learn retain, and when the learning
            rate would be 0 at every update.
    """
    if args.save_only_model:
        raise UserError(
            "save_only_model would leave checkpoints that no training can go on from; leave it unset, and save the "
            "finished model"
        )
    retain = splits.get("retain")
    data.refuse_of_streams(isinstance(retain, Stream), counted=isinstance(retain, StreamedSplit))
    sizes = checked_sizes(splits, uses, args, data)
    if args.shrink_perturb and "retain" not in uses and not start.has_initial:
        raise UserError(
            f"{args.title} never sees retain, so what shrink_perturb takes would not be learned again; name "
            "--initial_model (initial_model), to which it then leads back, or set it for others alone, as in "
            "--neg_grad.shrink_perturb"
        )
    args.check_for(splits, start)
    for training, rows in () if own_schedule else args.trainings(uses, start):
        updates = training.updates(*(sizes[name] if name in rows else 0 for name in ("retain", "unlearn")))
        if updates is not None:  # else the Trainer asks when it knows
            refuse_standing_still(training, training.schedule(updates), updates)


def refuse_standing_still(args: UnlearningConfig, scheduler: object, updates: int) -> None:
    """Refuse a schedule whose learning rate is 0 at every update."""
    factors = getattr(scheduler, "lr_lambdas", ())  # of the learning rate; some schedules follow the loss instead
    if factors and not any(factor(step) for factor in factors for step in range(updates)):
        raise UserError(
            f"{args.title}: the learning rate is 0 at each of its updates ({updates}, with warmup_steps "
            f"{args.warmup_steps:g}), so it would train nothing; set warmup_steps to 0 in its section (the base "
            "model's is pretrain), more epochs, or a smaller per_device_train_batch_size"
        )


def refuse_search(*_: object, **__: object) -> NoReturn:
    """Refuse `Trainer.hyperparameter_search`: a loss does not tell how near to Retrain a model is."""
    raise UserError("hyperparameter_search minimises a loss; search with hf-unlearn tune, for the gap to Retrain")
