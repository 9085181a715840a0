"""`trainer.push_to_hub()` for unlearning: the trained model with its card and records, and nothing of the training."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_unlearn.errors import UserError
from hf_unlearn.hub.card import write_card
from hf_unlearn.hub.drift import drift_notes
from hf_unlearn.hub.manifest import caption_length_of, describe_base_model, public_hyper_parameters, record_run
from hf_unlearn.hub.past_requests import PastRequests
from hf_unlearn.hub.publishing import PublishResult, publish_run
from hf_unlearn.hub.recorded_rows import RecordedRows
from hf_unlearn.models.weights import weights_sha256
from hf_unlearn.records.file_names import EVALUATION_NAME
from hf_unlearn.records.method_description import MethodDescription
from hf_unlearn.records.schemas import (
    BaseModel,
    DatasetRecord,
    EvaluationRecord,
    RequestRecord,
    RequestStatus,
    UnlearningManifest,
)

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, Trainer


def trainer_record(
    trainer: "Trainer",
    method: str,
    splits: Mapping[str, "Dataset"],
    description: MethodDescription,
    requests: Sequence[RequestStatus] = (),
) -> Callable[[Path], UnlearningManifest]:
    """Describe a trainer that was used on its own, for `push_trainer` to write down.

    Args:
        trainer: The trainer, after training.
        method: The method's id.
        splits: `retain`, `unlearn` and, where there are, `validation` and `test`, in the library's schema.
        description: What the method says of itself.
        requests: Where each request stands, the trainer's own last.

    Returns:
        A function that writes `unlearning.json` into the folder it is given. The base is what the model remembers to
        have been loaded from; the data is unnamed, with the hash of retain and unlearn together; the request is the ids
        of the unlearn split, where it has none those that `make_splits` gives: `unlearn/` and the row's number.

    Raises:
        UserError: The base has no safetensors weights.
    """
    from hf_unlearn.data.fingerprint import combine_hashes, dataset_sha256
    from hf_unlearn.data.sources import with_ids
    from hf_unlearn.models.adapters import adapter_settings
    from hf_unlearn.models.contrastive import is_dual_encoder, unwrap
    from hf_unlearn.models.origin import origin_of

    model: Any = trainer.model
    data = getattr(trainer, "data_config", None)
    origin = origin_of(model)
    base, revision = origin.name, origin.revision
    base_model, history = describe_base_model(base, revision) if base else (BaseModel("unnamed model"), ())
    unlearn = splits["unlearn"]
    named = unlearn if "id" in unlearn.column_names else with_ids(unlearn, prefix="unlearn/")
    ids = [str(row) for row in named["id"]]
    request = RequestRecord("split", len(ids), combine_hashes(ids))
    past = PastRequests.read(base, revision)
    logged = [entry["train_runtime"] for entry in trainer.state.log_history if "train_runtime" in entry]
    write_record = partial(
        record_run,
        method=method,
        base_model=base_model,
        history=history,
        dataset=DatasetRecord(
            "unnamed", sha256=dataset_sha256({n: splits[n] for n in ("retain", "unlearn") if n in splits})
        ),
        request=request,
        splits={name: len(splits.get(name, ())) for name in ("retain", "unlearn", "validation", "test")},
        hyper_parameters={
            **public_hyper_parameters(trainer.args),
            **public_hyper_parameters(data, data.idle(is_dual_encoder(unwrap(model))) if data is not None else ()),
            **caption_length_of(getattr(trainer, "preprocessor", None)),
            **adapter_settings(model),
        },
        description=description,
        preset=getattr(trainer.args, "preset", None),
        seed=trainer.args.seed,
        run_time_seconds=logged[-1] if logged else None,
        notes=(*getattr(trainer, "notes", ()), *drift_notes(tuple(requests))),  # that a guard stopped the training
        requests=tuple(requests),
        held_out=past.salted.held_out,
        parts=past.salted.parts,
        retain_sha256=dataset_sha256(splits["retain"]) if "retain" in splits else None,
        initial_model=_initial_record(getattr(trainer, "initial_model", None), base_model),
        family="image-text" if is_dual_encoder(unwrap(model)) else "views",
    )
    own_rows = RecordedRows.of(request, splits)

    def record(folder: Path) -> UnlearningManifest:
        past.private.joined(own_rows).save(folder)
        return write_record(folder)

    return record


def _initial_record(model: "PreTrainedModel | None", base: BaseModel) -> BaseModel | None:
    """What is known of the model that a trainer's model was fine-tuned from; it may have been made in memory."""
    from hf_unlearn.models.origin import origin_of

    if model is None:
        return None
    unnamed, origin = BaseModel("unnamed model"), origin_of(model)
    try:
        found = describe_base_model(origin.name, origin.revision)[0] if origin.name else unnamed
    except UserError:  # its weights are elsewhere by now, or were pickled: nothing that the result depends on is lost
        return unnamed
    return unnamed if found.sha256 == base.sha256 else found  # made of the config of the base, which names its origin


def leave_records(folder: Path, record: Callable[[Path], UnlearningManifest]) -> None:
    """Write a saved model's record and card; measurements of other weights that lie there are removed.

    Args:
        folder: Where the model was saved.
        record: Writes `unlearning.json` into the folder it is given: from `trainer_record`.
    """
    measured = folder / EVALUATION_NAME
    if measured.is_file() and EvaluationRecord.load(folder).weights_sha256 != weights_sha256(folder):
        measured.unlink()
        shutil.rmtree(folder / "assets", ignore_errors=True)
    record(folder)
    write_card(folder)


def push_trainer(
    trainer: "Trainer",
    record: Callable[[Path], UnlearningManifest],
    *,
    private: bool | None = None,
    revision: str | None = None,
    token: str | None = None,
    **options: Any,
) -> PublishResult | None:
    """Save a trainer's model into its `output_dir`, write its records and card there, and publish the folder.

    The Trainer's own `push_to_hub` uploads the whole output folder, the pickled arguments with the token in them
    included; this sends the files that `hf_unlearn.records.file_names` lists, `evaluation.json` among them where there
    is one.

    Args:
        trainer: A Trainer; its `hub_model_id`, `hub_private_repo`, `hub_revision` and `hub_token` apply where the
            arguments here are None. Without a `hub_model_id` the repository is called like the output folder.
        record: Writes `unlearning.json` into the folder it is given: from `trainer_record`.
        private: Whether a repository that is created now is private.
        revision: A branch.
        token: A token with write access.
        options: Further ones of `publish_run`, such as `create_pr`, `dry_run`, `show_samples` and `commit_message`.

    Returns:
        What was sent; None on every process but the first.

    Raises:
        UserError: As `publish_run` does.
    """
    arguments = trainer.args
    folder = Path(str(arguments.output_dir))
    trainer.save_model(str(folder), _internal_call=True)  # every process takes part; the flag keeps it from pushing
    if not trainer.is_world_process_zero():
        return None
    leave_records(folder, record)
    return publish_run(
        folder,
        arguments.hub_model_id or folder.resolve().name,
        private=arguments.hub_private_repo if private is None else private,
        revision=revision or arguments.hub_revision,
        token=token or arguments.hub_token,
        **options,
    )
