"""Is what would be loaded what was recorded: weights, the files beside them, code, and what else lies there."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_unlearn import __version__, models
from hf_unlearn.errors import UserError, listed
from hf_unlearn.hub.card import hash_files, hub_identifier, is_adapter
from hf_unlearn.hub.verification_report import Outcome, Statement, judged
from hf_unlearn.models.weights import (
    ADAPTER_CONFIG_NAME,
    changes_nothing,
    differing_tensors,
    file_sha256,
    has_weights,
    leads_out,
    weight_files,
    weights_sha256,
)
from hf_unlearn.parsing import read_json
from hf_unlearn.records.file_names import MANIFEST_NAME, foreign_files, is_foreign, published_names
from hf_unlearn.records.schemas import BaseModel, UnlearningManifest

# Fields of configurations that name classes to load, and whose code they are: of transformers and of modules.json.
_REMOTE_CODE = ("auto_map", "custom_pipelines", "type")


def verify_files(folder: Path, manifest: UnlearningManifest) -> Iterator[Statement]:
    """Check the weights and every file beside them against their recorded hashes, and that loading reads no other."""
    yield _weights(folder, manifest)
    if has_weights(folder) and not is_adapter(manifest):
        yield _tensors(folder)
    yield _changed(manifest)
    yield from recorded_files(folder, manifest.files)
    yield _links(folder)
    yield _preprocessing(folder)
    yield _code(folder, manifest)
    if is_adapter(manifest):
        yield _adapter_base(folder, manifest.base_model)


def _weights(folder: Path, manifest: UnlearningManifest) -> Statement:
    try:
        files = weight_files(folder)
        actual = weights_sha256(folder)
    except UserError as error:
        # Two kinds of weights side by side, or a shard missing, is a fault; no weights at all, a kept card.
        return Statement("weights", Outcome.FAILS if has_weights(folder) else Outcome.UNCHECKED, str(error))
    used = {file.relative_to(folder).as_posix() for file in files}
    if stray := [name for name in published_names(folder) if name.endswith(".safetensors") and name not in used]:
        return Statement("weights", Outcome.FAILS, f"{listed(stray)} also lies there, which loading does not read")
    same = actual == manifest.weights_sha256
    return judged("weights", same, f"SHA-256 {actual}", f"SHA-256 is {actual}, recorded {manifest.weights_sha256}")


def _tensors(folder: Path) -> Statement:
    """A tensor that a checkpoint lacks would be drawn at random by whoever loads it."""
    from hf_unlearn.models.loading import load_model

    try:
        model = load_model(str(folder))
    except UserError as error:
        return Statement("tensors", Outcome.FAILS, str(error))
    broken = [name for name, tensor in model.state_dict().items() if not bool(tensor.isfinite().all())]
    fine, problem = "all of the model's tensors are there, in its shapes", f"not finite: {listed(broken)}"
    return judged("tensors", not broken, fine, problem)


def _preprocessing(folder: Path) -> Statement:
    """Who loads a processor reads one file, and who loads an image processor may read the other."""
    subject, fine = "preprocessing", "one image processor for all loaders"
    try:
        files = [folder / "processor_config.json", folder / "preprocessor_config.json"]
        whole, alone = [read_json(file) if file.is_file() else None for file in files]
    except UserError as error:
        return Statement(subject, Outcome.FAILS, str(error))
    within = whole.get("image_processor") if isinstance(whole, dict) else None
    if not isinstance(within, dict) or not isinstance(alone, dict):
        return Statement(subject, Outcome.HOLDS, fine)
    names = {*within, *alone} - {"image_processor_type", "processor_class"}
    differing = sorted(name for name in names if within.get(name) != alone.get(name))
    problem = f"{files[0].name} and {files[1].name} differ in {listed(differing)}, and loaders on which they read"
    return judged(subject, not differing, fine, problem)


def _changed(manifest: UnlearningManifest) -> Statement:
    """Weights that are those of the base model are no unlearned ones."""
    subject, base = "change of the weights", manifest.base_model.sha256
    if base is None:
        return Statement(subject, Outcome.UNCHECKED, "the hash of the base model was not recorded")
    problem = "the weights have the base model's hash: nothing was unlearned"
    return judged(subject, manifest.weights_sha256 != base, "their hash is not the base model's", problem)


def recorded_files(folder: Path, recorded: Mapping[str, str]) -> Iterator[Statement]:
    """Check the files beside the weights against their recorded hashes."""
    actual = hash_files(folder)
    for name in sorted({*actual, *recorded}):
        if name not in recorded:
            yield Statement(name, Outcome.FAILS, f"is not recorded in {MANIFEST_NAME}")
        elif name not in actual:
            yield Statement(name, Outcome.FAILS, "is recorded but missing")
        else:
            problem = f"SHA-256 is {actual[name]}, recorded {recorded[name]}"
            yield judged(name, actual[name] == recorded[name], "SHA-256 as recorded", problem)


def _links(folder: Path) -> Statement:
    """A link that leads out of the folder is another file for everybody who loads it."""
    links = [name for name in published_names(folder) if leads_out(folder / name, folder)]
    return judged("links", not links, "no file leads out of the folder", f"{listed(links)} leads out of the folder")


def _code(folder: Path, manifest: UnlearningManifest) -> Statement:
    """Code that loading would run: none, this library's own to the byte, or what a reader has to read first."""
    foreign: list[str] = []
    for name in published_names(folder):
        if name.endswith(".json"):
            try:
                foreign += [f"{name} names {one}" for one in _references(read_json(folder / name)) if "--" in one]
            except UserError as error:
                return Statement("code", Outcome.FAILS, str(error))
    if foreign:
        return Statement("code", Outcome.FAILS, f"loading would run code of another repository: {listed(foreign)}")
    modules = [name for name in published_names(folder) if name.endswith(".py")]
    ours = {path.name: set[str]() for path in Path(models.__path__[0]).rglob("*.py")}
    for path in Path(models.__path__[0]).rglob("*.py"):
        ours[path.name].add(file_sha256(path))
    others = [name for name in modules if file_sha256(folder / name) not in ours.get(name, ())]
    if not others:
        found = f"{listed(modules)} as this library has them" if modules else "none comes with the model"
        return Statement("code", Outcome.HOLDS, found)
    same = manifest.library_version == __version__
    detail = f"{listed(others)} is not this library's own; read it before you allow it to run"
    return Statement("code", Outcome.FAILS if same else Outcome.UNCHECKED, detail)


def _references(config: Any) -> Iterator[str]:
    """Every class that a configuration names, wherever in it that stands."""
    if isinstance(config, list):
        for item in config:
            yield from _references(item)
    elif isinstance(config, dict):
        for key, value in config.items():
            yield from _strings(value) if key in _REMOTE_CODE else _references(value)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _strings(item)


def _adapter_base(folder: Path, base: BaseModel) -> Statement:
    """Check that an adapter's config sends its reader to the base model that the records name."""
    try:
        config = read_json(folder / ADAPTER_CONFIG_NAME)
        named, revision = config["base_model_name_or_path"], config["revision"]
    except (OSError, ValueError, KeyError, TypeError):
        return Statement("adapter's base", Outcome.FAILS, f"{ADAPTER_CONFIG_NAME} names none")
    here = base.revision is None and Path(str(named)).is_absolute() and Path(str(named)).name == base.name_or_path
    same = here or (named, revision) == (hub_identifier(base.name_or_path, base.revision), base.revision)
    problem = f"is {named} at revision {revision}, recorded {base.name_or_path} at {base.revision}"
    return judged("adapter's base", same, "the recorded base model", problem)


def verify_local(folder: Path) -> Statement:
    """Check what lies beside what is published."""
    return _other_files(foreign_files(folder))


def verify_repository(
    repo_id: str, manifest: UnlearningManifest, commit: str, token: str | None
) -> Iterator[Statement]:
    """Check what the repository holds beside the files that were downloaded."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError

    same = manifest.repo_id == repo_id
    yield judged("repository", same, "the one it was published to", f"was published to {manifest.repo_id}")
    try:
        names = HfApi(token=token).list_repo_files(repo_id, revision=commit)
    except (HTTPError, OSError) as error:
        yield Statement("other weights", Outcome.UNCHECKED, f"the Hub cannot be reached ({type(error).__name__})")
        return
    yield _other_files(sorted(name for name in names if is_foreign(name)))


def _other_files(foreign: Sequence[str]) -> Statement:
    """Say whether there is anything beside what is published that could be loaded, or run, as the model's."""
    fine = "no pickles, weights of another form or foreign code beside what is published"
    return judged("other weights", not foreign, fine, f"also holds {', '.join(foreign)}")


def verify_base(folder: Path, manifest: UnlearningManifest, base: str | Path | None) -> Iterator[Statement]:
    """Check the base model's hash, and that unlearning changed some of its tensors, whatever files they lie in."""
    recorded = manifest.base_model.sha256
    if base is None:
        yield Statement("base weights", Outcome.UNCHECKED, "give the base model's folder with --base")
        return
    actual = weights_sha256(base)
    if recorded is None:
        yield Statement("base weights", Outcome.UNCHECKED, "its hash was not recorded")
    else:
        problem = f"SHA-256 is {actual}, recorded {recorded}"
        yield judged("base weights", actual == recorded, f"SHA-256 {actual}", problem)
    subject, problem = "tensors", "every tensor is the base model's: nothing was unlearned"
    try:
        if is_adapter(manifest):
            same = changes_nothing(folder)
            yield judged(
                subject, not same, "the adapter changes its base model", "the adapter adds zero: no unlearning"
            )
            return
        differing, count, apart = differing_tensors(folder, base)
    except UserError as error:
        yield Statement(subject, Outcome.FAILS, str(error))
        return
    fine = f"{differing} of {count} differ from the base model's, by {apart:.2%} of their size"
    # A tensor that the base lacks is one that no model reads, and changes nothing.
    yield judged(subject, differing > 0 and apart > 0, fine, problem)
