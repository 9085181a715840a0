"""Is what would be loaded what was recorded: weights, the files beside them, code, and what else lies there."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from hf_unlearn import __version__, models
from hf_unlearn.errors import UserError, listed
from hf_unlearn.hub.card import hash_files, hub_identifier, is_adapter
from hf_unlearn.hub.verification_report import Outcome, Statement, failed, held, judged, unchecked
from hf_unlearn.models.weights import (
    ADAPTER_CONFIG_NAME,
    CONFIG_NAME,
    OPEN_CLIP_WEIGHTS_NAME,
    file_sha256,
    has_weights,
    leads_out,
    tensor_header,
    weight_files,
    weights_sha256,
)
from hf_unlearn.parsing import read_json, read_text
from hf_unlearn.records.file_names import MANIFEST_NAME, is_foreign, is_published, other_files, published_names
from hf_unlearn.records.schemas import BaseModel, UnlearningManifest

_TOKENIZERS = ("tokenizer.json", "vocab.json")
_KINDS = {"float16": "F16", "bfloat16": "BF16"}  # what safetensors calls them
# Fields of configurations that name classes to load, and whose code they are: of transformers and of modules.json.
_REMOTE_CODE = ("auto_map", "custom_pipelines", "type")


def verify_files(folder: Path, manifest: UnlearningManifest) -> Iterator[Statement]:
    """Check the weights and every file beside them against their recorded hashes, and that loading reads no other."""
    yield _weights(folder, manifest)
    if has_weights(folder) and not is_adapter(manifest):
        yield from _tensors(folder)
    yield _changed(manifest)
    yield from recorded_files(folder, manifest.files)
    links = [name for name in published_names(folder) if leads_out(folder / name, folder)]
    yield judged("links", not links, "no file leads out of the folder", f"{listed(links)} leads out of the folder")
    yield _preprocessing(folder)
    yield _tokenizers(folder)
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
        return failed("weights", f"{listed(stray)} also lies there, which loading does not read")
    same = actual == manifest.weights_sha256
    return judged("weights", same, f"SHA-256 {actual}", f"SHA-256 is {actual}, recorded {manifest.weights_sha256}")


def _tensors(folder: Path) -> Iterator[Statement]:
    """A tensor that a checkpoint lacks would be drawn at random by whoever loads it, and one too many may hold any."""
    from hf_unlearn.models.loading import load_model

    try:
        model = load_model(str(folder))
    except UserError as error:
        yield failed("tensors", str(error))
        return
    if (rounded := _rounded(folder)) is not None:
        yield failed("tensors", rounded)
        return
    broken = [name for name, tensor in model.state_dict().items() if not bool(tensor.isfinite().all())]
    fine, problem = "all of the model's tensors are there, in its shapes", f"not finite: {listed(broken)}"
    yield judged("tensors", not broken, fine, problem)
    files = weight_files(folder)
    if any(file.name == OPEN_CLIP_WEIGHTS_NAME for file in files):
        return  # of which loading refuses one too many
    if unread := sorted({name for file in files for name in tensor_header(file)} - model.state_dict().keys()):
        told = f"{len(unread)} stand under names that the model has none of, and may hold anything: {listed(unread)}"
        yield unchecked("other tensors", told)


def _rounded(folder: Path) -> str | None:
    """What is wrong where loaders round the weights to a coarser type than they are stored in; None where they do not.

    transformers follows config.json unless it is told otherwise, and this library loads everything as float32.
    """
    config = read_json(folder / CONFIG_NAME) if (folder / CONFIG_NAME).is_file() else {}
    named = str(config.get("dtype") or config.get("torch_dtype") or "float32").removeprefix("torch.")
    kinds = {kind for file in weight_files(folder) for kind, _ in tensor_header(file).values()}
    finer = kinds & {"F64", "F32", "F16", "BF16"} - {_KINDS.get(named)}
    if named in ("float32", "float64") or not finer:
        return None
    return f"{CONFIG_NAME} asks for {named}, to which loaders round what is stored as {listed(sorted(finer))}"


def _preprocessing(folder: Path) -> Statement:
    """Who loads a processor reads one file, and who loads an image processor may read the other."""
    from hf_unlearn.models.processor_files import check_processor_files

    subject, fine = "preprocessing", "one image processor for all loaders, and nothing that leads elsewhere"
    try:
        check_processor_files(str(folder))
        files = [folder / "processor_config.json", folder / "preprocessor_config.json"]
        whole, alone = [read_json(file) if file.is_file() else None for file in files]
    except UserError as error:
        return failed(subject, str(error))
    within = whole.get("image_processor") if isinstance(whole, dict) else None
    if not isinstance(within, dict) or not isinstance(alone, dict):
        return held(subject, fine)
    names = {*within, *alone} - {"image_processor_type", "processor_class"}
    differing = sorted(name for name in names if within.get(name) != alone.get(name))
    problem = f"{files[0].name} and {files[1].name} differ in {listed(differing)}, and loaders on which they read"
    return judged(subject, not differing, fine, problem)


def _tokenizers(folder: Path) -> Statement:
    """Some loaders read tokenizer.json, and others the vocabulary and the merges beside it."""
    subject, fine = "tokenizer", "one tokenizer for all loaders"
    try:
        whole, vocabulary = [read_json(folder / n) if (folder / n).is_file() else {} for n in _TOKENIZERS]
        model = whole.get("model") if isinstance(whole, dict) else None
        if not isinstance(model, dict) or not vocabulary:
            return held(subject, fine)
        same = model.get("vocab") == vocabulary
        if (folder / "merges.txt").is_file():
            lines = read_text(folder / "merges.txt").splitlines()
            merges = [one.split(" ") if isinstance(one, str) else one for one in model.get("merges") or ()]
            same &= merges == [line.split(" ") for line in lines if line and not line.startswith("#version")]
    except UserError as error:
        return failed(subject, str(error))
    problem = f"{' and '.join(_TOKENIZERS)} (with merges.txt) differ, and loaders on which they read"
    return judged(subject, same, fine, problem)


def _changed(manifest: UnlearningManifest) -> Statement:
    """Weights that are those of the base model are no unlearned ones."""
    subject, base = "change of the weights", manifest.base_model.sha256
    if base is None:
        return unchecked(subject, "the hash of the base model was not recorded")
    problem = "the weights have the base model's hash: nothing was unlearned"
    return judged(subject, manifest.weights_sha256 != base, "their hash is not the base model's", problem)


def recorded_files(folder: Path, recorded: Mapping[str, str]) -> Iterator[Statement]:
    """Check the files beside the weights against their recorded hashes."""
    actual = hash_files(folder)
    for name in sorted({*actual, *recorded}):
        if name not in recorded:
            yield failed(name, f"is not recorded in {MANIFEST_NAME}")
        elif name not in actual:
            yield failed(name, "is recorded but missing")
        else:
            problem = f"SHA-256 is {actual[name]}, recorded {recorded[name]}"
            yield judged(name, actual[name] == recorded[name], "SHA-256 as recorded", problem)


def _code(folder: Path, manifest: UnlearningManifest) -> Statement:
    """Code that loading would run: none, this library's own to the byte, or what a reader has to read first."""
    foreign: list[str] = []
    for name in published_names(folder):
        if name.endswith(".json"):
            try:
                content = read_json(folder / name)
                foreign += [f"{name} names {one}" for one in _references(content) if "--" in one]
                if name == ADAPTER_CONFIG_NAME:
                    foreign += [f"{name} imports {one}" for one in _imports(content)]
            except UserError as error:
                return failed("code", str(error))
    if foreign:
        return failed("code", f"loading would run code from elsewhere: {listed(foreign)}")
    modules = [name for name in published_names(folder) if name.endswith(".py")]
    ours = {path.name: set[str]() for path in Path(models.__path__[0]).rglob("*.py")}
    for path in Path(models.__path__[0]).rglob("*.py"):
        ours[path.name].add(file_sha256(path))
    others = [name for name in modules if file_sha256(folder / name) not in ours.get(name, ())]
    if not others:
        found = f"{listed(modules)} as this library has them" if modules else "none comes with the model"
        return held("code", found)
    same = manifest.library_version == __version__
    detail = f"{listed(others)} is not this library's own; read it before you allow it to run"
    return Statement("code", Outcome.FAILS if same else Outcome.UNCHECKED, detail)


def _imports(config: object) -> list[str]:
    """The modules that peft's automatic classes would import for an adapter, but for those of model families."""
    mapping = config.get("auto_mapping") if isinstance(config, dict) else None
    named = mapping.get("parent_library") if isinstance(mapping, dict) else None
    known = named is None or str(named).startswith(("transformers.models.", f"{models.__name__}."))
    return [] if known else [str(named)]


def _references(config: object) -> Iterator[str]:
    """Every class that a configuration names, wherever in it that stands."""
    if isinstance(config, list):
        for item in config:
            yield from _references(item)
    elif isinstance(config, dict):
        for key, value in config.items():
            yield from _strings(value) if key in _REMOTE_CODE else _references(value)


def _strings(value: object) -> Iterator[str]:
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
        return failed("adapter's base", f"{ADAPTER_CONFIG_NAME} names none")
    here = base.revision is None and Path(str(named)).is_absolute() and Path(str(named)).name == base.name_or_path
    same = here or (named, revision) == (hub_identifier(base.name_or_path, base.revision), base.revision)
    problem = f"is {named} at revision {revision}, recorded {base.name_or_path} at {base.revision}"
    return judged("adapter's base", same, "the recorded base model", problem)


def verify_local(folder: Path, manifest: UnlearningManifest) -> Iterator[Statement]:
    """Check what lies beside what is published."""
    if manifest.repo_id is not None:
        named = f"its records name {manifest.repo_id}; whether this is what lies there is seen by verifying that"
        yield unchecked("repository", named)
    yield from _other_files(other_files(folder))


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
        yield unchecked("other weights", f"the Hub cannot be reached ({type(error).__name__})")
        return
    yield from _other_files([name for name in names if not is_published(name)])


def _other_files(names: Sequence[str]) -> Iterator[Statement]:
    """Say whether there is anything beside what is published that could be loaded, or run, as the model's."""
    foreign = sorted(filter(is_foreign, names))
    fine = "no pickles, weights of another form, foreign code or look-alikes beside what is published"
    yield judged("other weights", not foreign, fine, f"also holds {listed(foreign)}")
    if inert := sorted({*names} - {*foreign, ".gitattributes"}):
        yield unchecked("other files", f"no record describes {listed(inert)}")
