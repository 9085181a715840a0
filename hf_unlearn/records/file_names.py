"""Which files of a run's folder are published: those on this list, and nothing else."""

import ast
import unicodedata
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from glob import escape
from pathlib import Path

from hf_unlearn.errors import UserError
from hf_unlearn.models.weights import CLIP_MODULE
from hf_unlearn.parsing import read_json, read_text

CARD_NAME = "README.md"
MANIFEST_NAME = "unlearning.json"  # how a checkpoint was unlearned
EVALUATION_NAME = "evaluation.json"  # what the model's owner measured
AUDIT_NAME = "audit.json"  # what a data owner measured; before 0.2, the model's owner too
REMOVAL_NAME = "removal.intoto.json"  # the removal as a statement that public tools read
BOM_NAME = "bom.cdx.json"  # the bill of materials
DIGESTS_NAME = "digests.sha256"  # of every published file, for a time-stamp
TOKEN_NAME = "digests.sha256.tsr"  # the time-stamp of the digests
SIGNATURE_NAME = "model.sig"
ERASURE_NAME = "erasure_record.md"  # for whoever answers the request; never published
# What is made of the records and the files beside them, so that no record lists its hash.
EVIDENCE = (REMOVAL_NAME, BOM_NAME, DIGESTS_NAME, TOKEN_NAME, SIGNATURE_NAME)
RESULTS_NAME = "results.json"  # the comparison of a run's methods, beside their folders

PUBLISHED = (
    CARD_NAME,
    MANIFEST_NAME,
    EVALUATION_NAME,
    *EVIDENCE,
    "assets/*.png",
    "config.json",
    "model.safetensors",
    "model-*-of-*.safetensors",
    "model.safetensors.index.json",
    "open_clip_config.json",
    "open_clip_model.safetensors",
    "modules.json",  # of sentence-transformers, whose CLIP lies in a folder of its own
    "0_CLIPModel/*.json",
    "0_CLIPModel/model.safetensors",
    "adapter_config.json",
    "adapter_model.safetensors",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "configuration_*.py",
    "modeling_*.py",
    "view_encoder.py",  # what SimCLR's and MoCo's code share
    "view_encoder_operations.py",
)

# Files that a loader could take for the model, or run: pickles and other forms of weights wherever they lie, and code
# at the root, where loaders and Inference Endpoints look for it.
WEIGHT_SUFFIXES = (
    *(".safetensors", ".bin", ".pt", ".pt2", ".pth", ".pte", ".ot", ".ckpt", ".nemo", ".mar", ".distcp"),
    *(".pkl", ".pickle", ".dill", ".joblib", ".npy", ".npz", ".h5", ".hdf5", ".keras", ".msgpack", ".index.json"),
    *(".onnx", ".onnx_data", ".gguf", ".ggml", ".tflite", ".pb", ".mlmodel", ".engine", ".trt", ".llamafile"),
)
CODE_SUFFIXES = (".py", ".pyc", ".so", ".ipynb")
# What a Trainer leaves in its own output folder, and nobody sends.
_TRAINING = ("training_args.bin", "checkpoint-*/*")


def is_foreign(name: str) -> bool:
    """Say whether a file, named by its path, could be taken for one of the model's although it is never published.

    It could be loaded or run; or its name is a published one in other letters, of which some machines keep one, or
    that look the same.
    """
    if is_published(name):
        return False
    seen = _as_seen(name)
    if could_be_loaded(seen) or _matches(seen, map(str.lower, PUBLISHED)):
        return True
    # A letter of another alphabet may look like any other; a name of such letters alone looks like none.
    pattern = "".join(letter if letter.isascii() else "?" for letter in escape(seen))
    mixed = not seen.isascii() and any(letter.isascii() for letter in seen.partition(".")[0])
    return mixed and any(fnmatchcase(published.lower(), pattern) for published in PUBLISHED)


def _as_seen(name: str) -> str:
    """A name as somebody reads it: in small letters of one width, without accents, spaces and what is not shown."""
    letters = unicodedata.normalize("NFKD", name).lower()
    return "".join(letter for letter in letters if unicodedata.category(letter)[0] not in "CMZ")


def could_be_loaded(name: str) -> bool:
    """Say whether a file, named by its path, holds weights of any form, or code where a loader looks for it."""
    return name.lower().endswith(WEIGHT_SUFFIXES) or ("/" not in name and name.lower().endswith(CODE_SUFFIXES))


def other_files(folder: str | Path) -> list[str]:
    """List the files of a folder that are never published, but for the checkpoints and arguments of a Trainer."""
    folder = Path(folder)
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    left = (name for name in names if not any(fnmatchcase(name, pattern) for pattern in _TRAINING))
    return sorted(name for name in left if not is_published(name))


def is_published(name: str) -> bool:
    """Say whether a file, named by its path inside the repository, is one that publishing sends."""
    return _matches(name, PUBLISHED)


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(name.count("/") == pattern.count("/") and fnmatchcase(name, pattern) for pattern in patterns)


def published_names(folder: str | Path) -> list[str]:
    """List the files of a folder that publishing sends, as sorted paths inside the repository."""
    folder = Path(folder)
    candidates = [*folder.iterdir(), *(folder / "assets").glob("*"), *(folder / CLIP_MODULE).glob("*")]
    names = (path.relative_to(folder).as_posix() for path in candidates if path.is_file())
    return sorted(name for name in names if is_published(name))


def missing_code(folder: str | Path, names: Sequence[str]) -> list[str]:
    """List the modules of remote code that loading would need and that are not among the files to publish.

    Args:
        folder: A checkpoint's folder.
        names: The files to publish, `config.json` among them unless it is an adapter's folder.

    Returns:
        File names: modules that the config refers to, and that published modules import from their own folder.
    """
    folder = Path(folder)
    if "config.json" not in names:
        return []  # an adapter's code is that of the base model; other forms bring none
    config = read_json(folder / "config.json")
    auto_map = config.get("auto_map") if isinstance(config, dict) else None
    references = auto_map.values() if isinstance(auto_map, dict) else ()
    needed = {f"{name.split('.')[0]}.py" for name in references if isinstance(name, str) and "--" not in name}
    for name in names:
        if name.endswith(".py"):
            try:
                tree = ast.parse(read_text(folder / name))
            except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
                raise UserError(f"{name} is no Python ({type(error).__name__}); restore or remove it.") from error
            imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level]
            needed |= {f"{node.module}.py" for node in imports}
    return sorted(needed - set(names))
