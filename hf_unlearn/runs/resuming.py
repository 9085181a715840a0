"""What makes a run's folder resumable: which run it is, what it has finished, and where its checkpoints lie.

`OUT/run.json` holds the run's key and the finished methods with the hash of their weights; `OUT/checkpoints/<method>/`
holds a method's checkpoints until it is finished.
"""

import dataclasses
import hashlib
import json
import logging
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from accelerate import PartialState

from hf_unlearn.data.fingerprint import combine_hashes
from hf_unlearn.data.requests import read_entries
from hf_unlearn.distributed import world_size
from hf_unlearn.errors import UserError, listed
from hf_unlearn.files import clear_interrupted, write_atomically
from hf_unlearn.methods import METHODS
from hf_unlearn.models.weights import CONFIG_NAMES, has_weights, weights_sha256
from hf_unlearn.parsing import read_json
from hf_unlearn.records.schemas import BaseModel, UnlearningManifest
from hf_unlearn.records.settings import weight_settings
from hf_unlearn.runs.command_line import INITIAL, PRETRAIN, Run
from hf_unlearn.runs.run_arguments import LORA, OPENMOJI, RunArguments
from hf_unlearn.runs.run_data import UnlearningTask
from hf_unlearn.runs.training_log import LOG_NAME, TRACKED

logger = logging.getLogger(__name__)

RUN_NAME = "run.json"
CHECKPOINTS = "checkpoints"
# Arguments that say what is done, beside what the hashes of model, rows and request say already.
_ARGUMENTS = (
    "split_seed", "validation_fraction", "test_fraction", "num_samples", "duplicates", "max_eval_samples",
    "retrain_model", "use_peft", "save_format", "save_dtype", *LORA,
)  # fmt: skip
# Arguments that say what is run and reported, not what comes out.
_REPORTING = (
    "methods", "output_dir", "resume", "overwrite", "audit_samples", "show_samples", "request_salt", "retrain_model",
    "allow_unfound_rows",
)  # fmt: skip


class RunState:
    """The state of a run's folder, for going on with it.

    Args:
        folder: the run's `output_dir`.
        resume: whether to go on with what is there; otherwise the run starts anew, and replaces it when it begins.
    """

    def __init__(self, folder: Path, resume: bool = False) -> None:
        self.folder, self.resume = folder, resume
        self._begun = False
        self._key: dict[str, object] = {}
        self._finished: dict[str, str] = {}
        self._stored: dict[str, object] = {}
        if resume and (folder / RUN_NAME).is_file():
            self._stored, self._finished = _read_record(folder / RUN_NAME)
        elif resume:
            logger.info("Nothing to resume in %s; the run starts.", folder)

    def require(self, key: dict[str, object]) -> None:
        """Add to what this run is, and refuse to resume one that was another.

        Raises:
            UserError: showing what differs.
        """
        key = json.loads(json.dumps(key, default=str))
        known = {n: v for n, v in key.items() if n in self._stored and not self._may_change(n)}
        differing = differences({name: self._stored[name] for name in known}, known)
        if differing:
            raise UserError(
                f"--resume: the run in {self.folder} is another one ({listed(differing)}); repeat its settings, or "
                "choose another --output_dir"
            )
        self._key |= key

    def _may_change(self, name: str) -> bool:
        """Whether a key is a setting of a method that has left nothing yet, such as one that refused its settings."""
        method, dot, _ = name.partition(".")
        is_begun = method in self._finished or any(self.checkpoints(method).glob("*"))
        return bool(dot) and method in METHODS and not is_begun

    def refuse_to_replace(self, methods: Iterable[str]) -> None:
        """Refuse to start anew where there is a run already, or folders of no run that this one would replace.

        Raises:
            UserError: naming the folder and the ways out.
        """
        if (self.folder / RUN_NAME).is_file():
            if self.resume:
                return
            raise UserError(
                f"{self.folder} holds a run already; give --resume to go on with it, --overwrite to replace it, or "
                "another --output_dir"
            )
        foreign = [name for name in methods if any((self.folder / name).glob("*"))]
        if foreign:
            raise UserError(
                f"{self.folder} holds no run, but {listed(foreign)}, which this run would replace; choose another "
                "--output_dir, or give --overwrite to replace them"
            )

    def begin(self) -> None:
        """Write down what the run is, before its first training; starting anew removes what an earlier run left."""
        if self._begun:
            return
        state, self._begun = PartialState(), True
        state.wait_for_everyone()  # each has looked at what is there
        if state.is_main_process:
            self.folder.mkdir(parents=True, exist_ok=True)
            for folder in (self.folder, *(self.folder / method for method in METHODS)):
                clear_interrupted(folder)
            if not self.resume:
                self._remove_earlier_run()
            for method in METHODS.keys() & self._finished:  # one was killed before it let go of them
                self._remove_checkpoints(method)
            self._write()
        state.wait_for_everyone()

    def _remove_earlier_run(self) -> None:
        """Its checkpoints, and the folders that its record calls finished: nothing else in the folder is this run's."""
        shutil.rmtree(self.folder / CHECKPOINTS, ignore_errors=True)
        if not (self.folder / RUN_NAME).is_file():
            return
        try:
            finished = _read_record(self.folder / RUN_NAME)[1]
        except UserError:
            logger.warning("%s cannot be read; of the earlier run, only what is run again is replaced.", RUN_NAME)
            return
        for method in METHODS.keys() & finished:  # no path that a file names
            shutil.rmtree(self.folder / method, ignore_errors=True)
        (self.folder / LOG_NAME).unlink(missing_ok=True)
        shutil.rmtree(self.folder / TRACKED, ignore_errors=True)

    def checkpoints(self, method: str) -> Path:
        """Where a method's checkpoints are kept while it is trained."""
        return self.folder / CHECKPOINTS / method

    def has_finished(self, method: str) -> bool:
        """Whether a method's folder is complete, holds the weights that were written, and can be read."""
        if method not in self._finished:
            return False
        folder = self.folder / method
        intact = has_weights(folder) and _is_readable(folder, self._finished[method])
        if not intact:
            logger.warning("%s is not as the run left it; the method is run again.", folder)
        return intact

    def finish(self, method: str) -> None:
        """Write down that a method's folder is complete, and let go of its checkpoints."""
        self._finished[method] = weights_sha256(self.folder / method)
        self._write()
        self._remove_checkpoints(method)

    def _remove_checkpoints(self, method: str) -> None:
        shutil.rmtree(self.checkpoints(method), ignore_errors=True)
        if not any((self.folder / CHECKPOINTS).glob("*")):
            shutil.rmtree(self.folder / CHECKPOINTS, ignore_errors=True)

    def _write(self) -> None:
        content = {"schema": 1, "key": self._stored | self._key, "finished": self._finished}
        write_atomically(self.folder / RUN_NAME, json.dumps(content, indent=1) + "\n")


def _is_readable(folder: Path, sha256: str) -> bool:
    """Whether a folder holds these weights, and the records and settings beside them are there and can be parsed."""
    try:
        if weights_sha256(folder) != sha256:
            return False
        UnlearningManifest.load(folder)
        found = {path.name: read_json(path) for path in folder.glob("*.json")}
    except UserError:
        return False
    return any(isinstance(found.get(name), dict | list) for name in CONFIG_NAMES)


def _read_record(path: Path) -> tuple[dict[str, object], dict[str, str]]:
    """A run's key and its finished methods."""
    try:
        content = read_json(path)
    except UserError:
        content = None
    key, finished = (content.get("key"), content.get("finished")) if isinstance(content, dict) else (None, None)
    if not isinstance(key, dict) or not isinstance(finished, dict):
        raise UserError(f"{path} cannot be read; give --overwrite instead of --resume, or choose another --output_dir")
    return key, finished


def data_key(arguments: RunArguments, task: UnlearningTask) -> dict[str, object]:
    """What is unlearned from which rows, as flat names and plain values; ids and paths stay out."""
    return {
        "request": task.request.sha256,
        "dataset": task.dataset.name,
        "dataset.sha256": task.dataset.sha256,
        "retain.sha256": None if task.streamed is None else task.streamed.sha256,
        "splits": task.sizes,
        **{name: getattr(arguments, name) for name in _ARGUMENTS},
    }


def training_key(run: Run) -> dict[str, object]:
    """Every setting of every method that may change its weights; a run may gain methods."""
    settings = {
        f"{method}.{name}": value
        for method, config in run.methods.items()
        for name, value in weight_settings(config, run.data).items()
    }
    if run.arguments.streaming:  # workers share the shards out, and so decide which rows meet in a batch
        settings |= {f"{method}.dataloader_num_workers": c.dataloader_num_workers for method, c in run.methods.items()}
    return {"processes": world_size(), **settings}


def settings_hash(run: Run) -> str:
    """Hash of all that a run's metrics depend on and its arguments say: data, base model, settings of its methods."""
    content = json.dumps([given_settings(run), run.model], sort_keys=True, default=str)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def given_settings(run: Run) -> dict[str, object]:
    """What `settings_hash` is of, by name, but for the architecture."""
    data = {n: v for n, v in dataclasses.asdict(run.arguments).items() if n not in _REPORTING}
    for switch in ("use_peft", "streaming"):
        data[switch] = data[switch] or None
    data |= {"unlearn_request": _request_hash(run.arguments), "local_data": _local_files_hash(run.arguments)}
    earlier = {PRETRAIN: run.pretrain} | ({INITIAL: run.initial} if run.initial is not None else {})
    settings = training_key(dataclasses.replace(run, methods=run.methods | earlier))
    return {n: v for n, v in (data | settings).items() if v is not None}  # so that it stays when fields are added


def differences(was: Mapping[str, object], now: Mapping[str, object]) -> list[str]:
    """What two sets of named values differ in, in words; a name that one of them lacks is None there.

    Example:
        >>> differences({"requests": 2, "seed": 0}, {"requests": 3, "seed": 0})
        ['requests was 2 and is 3']
    """
    names = [name for name in {**was, **now} if was.get(name) != now.get(name)]
    return [f"{name} was {was.get(name)!r} and is {now.get(name)!r}" for name in names]


def _request_hash(arguments: RunArguments) -> str | None:
    """Hash of the ids in the request's file, whatever it is called and however they are written there."""
    if arguments.unlearn_request is None:
        return None
    return combine_hashes(sorted(map(str, read_entries(arguments.unlearn_request))))


def _local_files_hash(arguments: RunArguments) -> str | None:
    """Hash of the names and sizes of a local dataset's files, which tells most changes without reading them."""
    path = Path(arguments.dataset_name).expanduser()
    if arguments.dataset_name == OPENMOJI or not path.exists():
        return None
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    # `datasets` leaves what it computed beside a saved dataset, in files that are called so.
    found = [f"{p.relative_to(path)} {p.stat().st_size}" for p in files if not p.name.startswith("cache-")]
    return combine_hashes(sorted(found))


def base_key(base: BaseModel) -> dict[str, object]:
    """The model that is unlearned from."""
    return {"base_model": base.name_or_path, "base_model.sha256": base.sha256}
