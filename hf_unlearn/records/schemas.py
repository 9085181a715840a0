"""What a finished run says about itself: `unlearning.json` and `evaluation.json` as frozen dataclasses."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Self

from hf_unlearn.errors import UserError
from hf_unlearn.files import write_atomically
from hf_unlearn.parsing import read_text
from hf_unlearn.records.codec import from_json, to_json
from hf_unlearn.records.file_names import AUDIT_NAME, EVALUATION_NAME, MANIFEST_NAME
from hf_unlearn.records.method_description import MethodDescription

SCHEMA = 1
COMMIT = re.compile(r"[0-9a-f]{40}")  # what a revision on the Hub is pinned to


@dataclass(frozen=True)
class BaseModel:
    """The model that was unlearned from, or the initial model that this one was fine-tuned from.

    `name_or_path` is a Hub id, or the bare name of a local folder (never a path). `revision` is the commit on the Hub,
    and None says that the model is local. `sha256` is that of its weights; the licence fields are those of its card.
    """

    name_or_path: str
    revision: str | None = None
    sha256: str | None = None
    license: str | None = None
    license_name: str | None = None
    license_link: str | None = None


@dataclass(frozen=True)
class DatasetRecord:
    """The training data: its name, its revision, and an order-independent SHA-256 over the hashes of all its rows.

    `rows` says what was read: files found, rows of each split and where it came from, rows left out and why.
    """

    name: str
    revision: str | None = None
    sha256: str | None = None
    rows: str = ""

    def differs(self, other: "DatasetRecord") -> bool:
        """Whether both are hashed, and are other rows."""
        return None not in (self.sha256, other.sha256) and self.sha256 != other.sha256


@dataclass(frozen=True)
class RequestRecord:
    """What was asked to be removed, without saying what it was.

    Without a salt, `sha256` is that of the sorted ids, one a line: it vouches for the request as a whole, and whoever
    guesses a list, or tries all of a few rows, finds which it is (`hf_unlearn.hub.guessing`). With a salt
    it combines the salted hashes of the requested rows (`hf_unlearn.data.fingerprint`), which `row_hashes` may then
    list: whoever knows the salt can look for a sample of their own, and nobody else can guess.
    """

    kind: str  # fraction, file, where or split
    count: int
    sha256: str
    salted: bool = False
    row_hashes: tuple[str, ...] | None = None


@dataclass(frozen=True)
class HistoryEntry:
    """An earlier unlearning run on the same model, from its own manifest."""

    method: str
    created: str
    request: RequestRecord
    weights_sha256: str
    base_sha256: str | None = None
    seed: int | None = None


@dataclass(frozen=True)
class RequestStatus:
    """Where a request of the model's history stands, as mean alignments times 100; the last one is the run's own.

    `before` is what its own run started from. `now` is of the rows measured, `low` to `high` its interval (None of one
    row), and `then` is what its own run left the same rows at: None where that is not known. `then_all` is what it left
    all its `then_rows` rows at; of records of earlier versions, which lack both, that is `then`.
    """

    number: int  # from 1, oldest first
    method: str
    created: str | None  # None for the run's own
    count: int  # rows that were asked for
    measured: int  # rows of them that are in the data, and compared
    before: float | None = None
    then: float | None = None
    now: float | None = None
    low: float | None = None
    high: float | None = None
    non_member: float | None = None  # held-out samples under the same model
    drifted: bool = False  # back above both `then` and `non_member`, beyond the interval
    unseen: float | None = None  # held-out samples under the model that its own run started from
    estimated_gap: float | None = None  # from `now` to the held-out samples of the model before any request
    then_all: float | None = None
    then_rows: int | None = None


class FileRecord:
    """A record that is a file of a run's folder, with its name."""

    NAME: ClassVar[str]
    schema: int

    def to_json(self) -> str:
        """Render as the file's text; a number that is not finite becomes null."""
        return to_json(self)

    @classmethod
    def from_json(cls, text: str, source: str | None = None) -> Self:
        """Read the file's text, which messages call by its source, or else by the file's name.

        Raises:
            UserError: It is no valid record of this kind, or one of a newer schema.
        """
        source = source or cls.NAME
        record = from_json(cls, text, source)
        if record.schema > SCHEMA:
            raise UserError(f"{source} has schema {record.schema}, newer than {SCHEMA}; upgrade hf_unlearn to read it.")
        return record

    def save(self, folder: str | Path) -> Path:
        """Write the file into a run's folder, atomically."""
        return write_atomically(Path(folder) / self.NAME, self.to_json())

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read the file from a run's folder.

        Raises:
            UserError: There is none, or it is not valid.
        """
        path = Path(folder) / cls.NAME
        if not path.is_file():
            raise UserError(f"{Path(folder).name or folder} holds no {cls.NAME}; name the folder of a finished run.")
        return cls.from_json(read_text(path))


@dataclass(frozen=True)
class UnlearningManifest(FileRecord):
    """Everything `unlearning.json` holds: how a checkpoint was unlearned, and the hashes to check it by."""

    NAME = MANIFEST_NAME

    method: str
    base_model: BaseModel
    weights_sha256: str
    dataset: DatasetRecord
    request: RequestRecord
    splits: dict[str, int]  # rows in retain, unlearn, validation, test
    created: str  # UTC, ISO 8601
    library_version: str
    description: MethodDescription = field(default_factory=MethodDescription)  # the method's own words
    preset: str | None = None
    hyper_parameters: dict[str, object] = field(default_factory=dict)
    split_seed: int | None = None
    seed: int | None = None
    versions: dict[str, str] = field(default_factory=dict)
    hardware: str = ""
    run_time_seconds: float | None = None
    notes: tuple[str, ...] = ()  # what a reader must know, such as a divergence guard that stopped the run
    files: dict[str, str] = field(default_factory=dict)  # SHA-256 of the files beside the weights
    repo_id: str | None = None  # set when published
    history: tuple[HistoryEntry, ...] = ()  # oldest first
    retain_sha256: str | None = None  # of the rows that stayed: what a Retrain is compared by
    # Where the request has a salt: salted hashes of the rows that the first run held out, by split.
    held_out: dict[str, tuple[str, ...]] = field(default_factory=dict)
    # The same for the hash of each row, requested or held out: of its picture alone, and of its captions alone.
    parts: dict[str, tuple[str, ...]] = field(default_factory=dict)
    requests: tuple[RequestStatus, ...] = ()  # of a Trainer on its own; a run's are in evaluation.json
    initial_model: BaseModel | None = None  # what the base was fine-tuned from; earlier versions kept its name alone
    family: str | None = None  # image-text or views; earlier versions kept it in evaluation.json alone
    schema: int = SCHEMA

    @property
    def method_title(self) -> str:
        """The method's name for readers; of a record without a description, made of its id."""
        return self.description.title or title_of(self.method)

    def as_history_entry(self) -> HistoryEntry:
        """Shorten to what the cards of later runs keep of this one."""
        return HistoryEntry(
            method=self.method,
            created=self.created,
            request=self.request,
            weights_sha256=self.weights_sha256,
            base_sha256=self.base_model.sha256,
            seed=self.seed,
        )


@dataclass(frozen=True)
class ComparisonRow:
    """One method's row of `results.json`."""

    method: str
    metrics: dict[str, float | None]
    gap: dict[str, float | None] = field(default_factory=dict)
    avg_gap: float | None = None
    title: str = ""  # how readers know the method

    @property
    def method_title(self) -> str:
        """The method's name for readers; of a row without a title, made of its id."""
        return self.title or title_of(self.method)


@dataclass(frozen=True)
class Matrices:
    """The alignment matrices that the heatmaps show, `[n, n]`, and the labels of their axes."""

    labels: tuple[str, ...] = ()
    shows_pictures: bool = False  # whether the heatmaps draw the samples on their axes
    am_before: tuple[tuple[float | None, ...], ...] = ()
    am_after: tuple[tuple[float | None, ...], ...] = ()
    agm: tuple[tuple[float | None, ...], ...] = ()

    @property
    def shows_samples(self) -> bool:
        """Whether the axes tell which samples these are, by picture or by anything but a number."""
        return self.shows_pictures or not all(re.fullmatch(r"(sample )?#?\d+", label) for label in self.labels)


@dataclass(frozen=True)
class EvaluationRecord(FileRecord):
    """Everything `evaluation.json` holds: each number and matrix behind the card."""

    NAME = EVALUATION_NAME

    family: str  # image-text or views
    metrics: dict[str, float | None]
    before: dict[str, float | None] | None = None
    original: dict[str, float | None] | None = None  # of the model before any request, where there were earlier ones
    retrain: dict[str, float | None] | None = None
    gap_keys: tuple[str, ...] = ()
    avg_gap: float | None = None
    per_sample: dict[str, tuple[float | None, ...]] = field(default_factory=dict)  # plain cosines, in the split's order
    matrices: Matrices | None = None
    weights_sha256: str | None = None  # of the model that was measured
    requests: tuple[RequestStatus, ...] = ()  # every request of the history, the run's own last
    comparison: tuple[ComparisonRow, ...] = ()  # the other methods of the same run, from results.json
    kind: str = "white-box"
    schema: int = SCHEMA

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read `evaluation.json` from a run's folder.

        Raises:
            UserError: There is none, or it is not valid.
        """
        refuse_earlier_name(folder)
        return super().load(folder)

    @classmethod
    def load_if_evaluated(cls, folder: str | Path) -> Self | None:
        """Read `evaluation.json` from a run's folder, or return None where the run was never evaluated.

        Raises:
            UserError: It is not valid, or has the name that earlier versions gave it.
        """
        refuse_earlier_name(folder)
        return cls.load(folder) if (Path(folder) / EVALUATION_NAME).is_file() else None


@dataclass(frozen=True)
class Results:
    """Everything `results.json` holds: the comparison across methods."""

    family: str
    gap_keys: tuple[str, ...]
    rows: tuple[ComparisonRow, ...]
    schema: int = SCHEMA


def title_of(method: str) -> str:
    """A name made of a method's id, for records that do not hold one."""
    return method.replace("_", " ").title()


def refuse_earlier_name(folder: str | Path) -> None:
    """Refuse a run's folder whose `evaluation.json` still has the name that is the data owner's now.

    Raises:
        UserError: The folder holds an `audit.json` alone.
    """
    folder = Path(folder)
    if (folder / AUDIT_NAME).is_file() and not (folder / EVALUATION_NAME).is_file():
        raise UserError(
            f"{folder.name or folder} holds an {AUDIT_NAME} but no {EVALUATION_NAME}, which is what the measurements "
            "of a model's owner are called now; rename the file, then write the card again with `hf-unlearn card`."
        )
