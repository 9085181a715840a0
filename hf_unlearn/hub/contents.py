"""Which files of a run's folder are published: those on this list, and nothing else."""

from fnmatch import fnmatchcase
from pathlib import Path

CARD_NAME = "README.md"

PUBLISHED = (
    CARD_NAME,
    "unlearning.json",
    "audit.json",
    "assets/*.png",
    "config.json",
    "model.safetensors",
    "model-*-of-*.safetensors",
    "model.safetensors.index.json",
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
)


def is_published(name: str) -> bool:
    """Say whether a file, named by its path inside the repository, is one that publishing sends."""
    return any(name.count("/") == pattern.count("/") and fnmatchcase(name, pattern) for pattern in PUBLISHED)


def published_names(folder: str | Path) -> list[str]:
    """List the files of a folder that publishing sends, as sorted paths inside the repository."""
    folder = Path(folder)
    candidates = [*folder.iterdir(), *(folder / "assets").glob("*")]
    names = (path.relative_to(folder).as_posix() for path in candidates if path.is_file())
    return sorted(name for name in names if is_published(name))
