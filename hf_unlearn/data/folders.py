"""What a local folder of data holds: which files are its rows, which splits they make, and what is left aside.

Words in names decide nothing: only a whole name does, of a top-level folder ("test/") or of a file ("test.parquet",
"test-00000-of-00002.parquet"). What would leave rows out is refused with their number.
"""

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_unlearn.errors import UserError, listed
from hf_unlearn.parsing import parse_yaml, read_text

# Whole names of folders and files, and the splits they are.
SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
    "retain": "retain",
    "unlearn": "unlearn",
}
HOLDOUT = "holdout_"  # splits called so are measured and never trained on: did a method erase more than was asked?
# "train", "train-00000-of-00002-a1b2c3", "train_7", "holdout_friends-00000-of-00001"
_SHARD = re.compile(rf"({HOLDOUT}\w+?|[a-z]+)([-_.]\d[\w.-]*)?")
# "train2017" beside "val2017": no splits, and hardly classes.
_ALMOST = re.compile(rf"({'|'.join(SPLIT_NAMES)})[-_. ]?(\d{{1,4}}|images?|set|split|data)")
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar")
# What pictures are called, those of formats that are not opened (`images.FORMATS`) among them: a row that is refused
# by name, or skipped on request, is not lost without a word.
PICTURES = frozenset(
    f".{suffix}"
    for formats in (
        "jpg jpeg jpe jfif png apng webp gif bmp dib tif tiff ppm pgm pbm pnm avif avifs jp2 j2k jpx",
        "heic heif eps ps svg psd tga ico icns pcx dds sgi rgb xbm xpm jxl hdr exr raw dng cr2 nef",
    )
    for suffix in formats.split()
)
CARD = "README.md"


@dataclass(frozen=True)
class FolderContent:
    """The rows' files of a folder.

    Attributes:
        root: What paths of pictures are relative to.
        kind: "pictures", "parquet", "tar", "archives" of pictures, or "nothing".
        splits: Split to its files, sorted by name.
        metadata: Files with captions and other columns of pictures.
        aside: Suffix to the number of other files, which are not read.
        by_folder: Whether the first folder of every file is that of its split.
        origin: Where the splits come from, in words.
    """

    root: Path
    kind: str
    splits: dict[str, list[Path]] = field(repr=False)
    metadata: tuple[Path, ...] = ()
    aside: Mapping[str, int] = field(default_factory=dict)
    by_folder: bool = False
    origin: str = "one split, train"

    @property
    def summary(self) -> str:
        """Files found, splits and where they come from, and files left aside, in one sentence without a name."""
        counts = ", ".join(f"{name} {len(files):,}" for name, files in self.splits.items())
        aside = ", ".join(f"{number:,} {suffix or 'without suffix'}" for suffix, number in sorted(self.aside.items()))
        kind = {"pictures": "Pictures", "archives": "Archives"}.get(self.kind, f"Files (.{self.kind})")
        return f"{kind} found: {counts} ({self.origin})" + (f"; files left aside: {aside}." if aside else ".")


def list_folder(root: Path, config: str | None = None) -> FolderContent:
    """List the data of a folder.

    Args:
        root: The folder.
        config: Which of the configurations that its README.md declares, as data sets on the Hub do; by default the one
            called "default" or marked so, or the only one.

    Returns:
        Its files by split.

    Raises:
        UserError: Files are of several kinds, some are in no split while others are, or the README declares
            configurations that do not fit the folder or the choice.
    """
    declared = _configurations(root)
    if declared:
        return _of_configuration(root, declared, config)
    if config is not None:
        raise UserError(
            f"--dataset_config {config} has no effect: {root} is a local folder whose README.md declares no "
            "configurations; leave it unset, or name the folder that you mean."
        )
    return _inferred(root, list(_files(root)))


def _files(root: Path) -> Iterator[Path]:
    """Every file below a folder, hidden ones left out, links followed, in the order of their names."""
    seen: set[Path] = set()
    for here, folders, names in os.walk(root, followlinks=True):
        place = Path(here)
        if (real := place.resolve()) in seen:  # a link that leads back
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__")))
        yield from (place / name for name in sorted(names) if not name.startswith("."))


def _inferred(root: Path, files: Sequence[Path]) -> FolderContent:
    kinds: dict[str, list[Path]] = {"pictures": [], "parquet": [], "tar": [], "archives": [], "metadata": []}
    others: list[Path] = []
    for file in files:
        kinds.get(_kind(file), others).append(file)
    if not kinds["pictures"]:  # a table called so beside no picture is data like any other
        kinds["parquet"] += [file for file in kinds["metadata"] if file.suffix == ".parquet"]
        kinds["metadata"] = []
        kinds["archives"] += kinds["tar"] if kinds["archives"] else []
    if kinds["archives"] or kinds["pictures"]:
        kinds["archives"] += kinds.pop("tar", [])
    found = [kind for kind in ("pictures", "parquet", "tar", "archives") if kinds.get(kind)]
    if len(found) > 1:
        counts = " and ".join(f"{len(kinds[kind]):,} {_WORDS[kind]}" for kind in found)
        raise UserError(f"{root} holds {counts}; which of them are the rows? Keep each kind in a folder of its own.")
    aside = Counter(file.suffix.lower() for file in others if file.name != CARD)
    if not found:
        return FolderContent(root, "nothing", {}, aside=aside)
    (kind,) = found
    base, splits, origin = _splits(root, kind, kinds[kind])
    by_folder = origin != _BY_CLASS and _are_by_folder(base, splits)
    return FolderContent(base, kind, splits, tuple(kinds["metadata"]), aside, by_folder, origin)


_BY_CLASS = "one split, train, with a folder for each class"
_WORDS = {"pictures": "pictures", "parquet": ".parquet files", "tar": ".tar files", "archives": "archives"}


def _kind(file: Path) -> str:
    suffix = file.suffix.lower()
    if file.name in METADATA:
        return "metadata"
    if suffix in PICTURES:
        return "pictures"
    if suffix in (".parquet", ".tar"):
        return suffix[1:]
    return "archives" if suffix in ARCHIVES else "other"


def _splits(root: Path, kind: str, files: Sequence[Path]) -> tuple[Path, dict[str, list[Path]], str]:
    """The folder that paths are relative to, the files of each split, and where the splits come from."""
    base = _unwrapped(root, files)
    of_folder = {file: _folder_split(file, base) for file in files}
    if kind != "pictures":
        of_name = {file: of_folder[file] or _name_split(file) for file in files}
        origin = "splits by the names of files and folders" if any(of_name.values()) else "one split, train"
        return base, _grouped(root, of_name), origin
    splits = {split for split in of_folder.values() if split}
    tops = {file.relative_to(base).parts[0] for file in files}
    alike = {top: match[1] for top in tops if (match := _ALMOST.fullmatch(top.lower()))}
    if len(alike) == len(tops) and len({SPLIT_NAMES[name] for name in alike.values()}) > 1:
        raise UserError(
            f"The folders {listed(sorted(tops))} of {root} look like splits, but only those called train, validation "
            "and test are; rename them."
        )
    outside = [file for file in files if of_folder[file] is None]
    if not splits or not outside:
        return base, _grouped(root, of_folder), "splits by folder" if splits else "one split, train"
    # A class may be called like a split: one such folder among others, all of them with pictures and no folders in it.
    if len(splits) == 1 and all(len(file.relative_to(base).parts) == 2 for file in files):
        return base, {"train": list(files)}, _BY_CLASS
    places = sorted({file.relative_to(base).parts[0] if file.parent != base else "no folder" for file in outside})
    raise UserError(
        f"{root} has folders for {listed(sorted(splits))}, but {len(outside):,} of {len(files):,} pictures lie "
        f"elsewhere ({listed(places)}); move them into train/, validation/, test/ or holdout_*/, or rename those "
        "folders if they are classes."
    )


def _unwrapped(root: Path, files: Sequence[Path]) -> Path:
    """The folder below which the splits' folders lie: the only folder there is, as unpacked archives often have."""
    base = root
    while True:
        tops = {file.relative_to(base).parts[:-1][:1] for file in files}
        if len(tops) != 1 or tops == {()} or _split_called(next(iter(tops))[0]):
            break
        base = base / next(iter(tops))[0]
    return base if all(_folder_split(file, base) for file in files) else root


def _are_by_folder(base: Path, splits: Mapping[str, Sequence[Path]]) -> bool:
    return all(_folder_split(file, base) == split for split, files in splits.items() for file in files)


def _folder_split(file: Path, base: Path) -> str | None:
    *folders, _ = file.relative_to(base).parts
    return _split_called(folders[0]) if folders else None


def _name_split(file: Path) -> str | None:
    match = _SHARD.fullmatch(file.stem.lower())
    return _split_called(match[1]) if match else None


def _split_called(name: str) -> str | None:
    name = name.lower()
    return name if name.startswith(HOLDOUT) and name != HOLDOUT else SPLIT_NAMES.get(name)


def _grouped(root: Path, split_of: Mapping[Path, str | None]) -> dict[str, list[Path]]:
    """The files of each split; all are train where none names a split."""
    named = {split for split in split_of.values() if split}
    without = [file for file, split in split_of.items() if split is None]
    if named and without:
        raise UserError(
            f"{len(without):,} of {len(split_of):,} files of {root} belong to no split, while others are "
            f"{listed(sorted(named))}: {listed(file.relative_to(root).as_posix() for file in without)}. Call them "
            "train-*, validation-*, test-* or holdout_*, or move them away."
        )
    order = dict.fromkeys((*SPLIT_NAMES.values(), *sorted(named)))
    found = {split: [file for file, its in split_of.items() if (its or "train") == split] for split in order}
    return {split: files for split, files in found.items() if files}


def _configurations(root: Path) -> list[dict[str, object]]:
    """What the README.md of a data set on the Hub says of its configurations; empty where it says nothing."""
    card = root / CARD
    if not card.is_file():
        return []
    try:
        text = read_text(card).removeprefix("\ufeff")
        parts = re.split(r"^---[ \t]*$", text, maxsplit=2, flags=re.MULTILINE)
        front = parse_yaml(parts[1], card.name) if len(parts) == 3 and not parts[0].strip() else None
    except (OSError, UserError) as error:
        raise UserError(f"The front matter of {card} cannot be read; mend it, or move the file away.") from error
    configs = front.get("configs") if isinstance(front, dict) else None
    if not configs:
        return []
    if not (isinstance(configs, list) and all(isinstance(entry, dict) for entry in configs)):
        raise UserError(f"The configs of {card} are no list of mappings, as those of a data set are; mend them.")
    return configs


def _of_configuration(root: Path, declared: list[dict[str, object]], wanted: str | None) -> FolderContent:
    by_name = {str(entry.get("config_name", "default")): entry for entry in declared}
    marked = [name for name, entry in by_name.items() if entry.get("default") is True]
    default = marked[0] if marked else "default" if "default" in by_name else None
    name = wanted or default or (next(iter(by_name)) if len(by_name) == 1 else None)
    if name is None or name not in by_name:
        asked = f"has no configuration {wanted!r}" if wanted else "has several configurations"
        raise UserError(f"{root} {asked} (--dataset_config); its README.md declares {listed(by_name)}.")
    entry = by_name[name]
    folder = root / _inside(root, str(entry.get("data_dir") or "."))
    given = entry.get("data_files")
    if given is None:
        return _inferred(folder, list(_files(folder)))
    splits: dict[str, list[Path]] = {}
    for split, patterns in _patterns(root, given):
        files = sorted({file for pattern in patterns for file in _matching(root, folder, pattern)})
        if not files:
            raise UserError(
                f"The configuration {name} of {root} has no file for its split {split} ({listed(patterns)}); fetch the "
                "data set with its files (git lfs pull), or choose another --dataset_config."
            )
        splits.setdefault(split, []).extend(files)
    repeated = [file for file, times in Counter(f for files in splits.values() for f in files).items() if times > 1]
    if repeated:
        raise UserError(f"The configuration {name} of {root} has files in two splits: {listed(repeated)}.")
    metadata = {file for files in splits.values() for file in files if file.name in METADATA}
    rows = {split: [file for file in files if file not in metadata] for split, files in splits.items()}
    kinds = {_kind(file) for files in rows.values() for file in files}
    if kinds not in ({"parquet"}, {"tar"}, {"pictures"}):
        raise UserError(
            f"The configuration {name} of {root} consists of {listed(sorted(kinds)) or 'no files'}; only parquet "
            "files, tar files and pictures are read."
        )
    origin = f"configuration {name} of its README.md"
    by_folder = _are_by_folder(folder, rows)
    return FolderContent(folder, kinds.pop(), rows, tuple(sorted(metadata)), {}, by_folder, origin)


def _patterns(root: Path, given: Any) -> Iterator[tuple[str, list[str]]]:
    """Splits and patterns of `data_files`: a pattern, several, or entries with `split` and `path`."""
    entries = given if isinstance(given, list) else [given]
    plain = [entry for entry in entries if isinstance(entry, str)]
    if plain:
        yield "train", plain
    for entry in entries:
        if isinstance(entry, str):
            continue
        paths = entry.get("path") if isinstance(entry, dict) else None
        patterns = [paths] if isinstance(paths, str) else paths
        if not (isinstance(patterns, list) and patterns and all(isinstance(path, str) for path in patterns)):
            raise UserError(f"The data_files of {root / CARD} are no paths with splits; mend them.")
        yield str(entry.get("split", "train")), patterns


def _matching(root: Path, folder: Path, pattern: str) -> Iterable[Path]:
    pattern = _inside(root, pattern)
    found = folder.glob(pattern.rstrip("/") + "/**/*" if (folder / pattern).is_dir() else pattern)
    return [file for file in found if file.is_file() and not file.name.startswith(".")]


def _inside(root: Path, path: str) -> str:
    """A path or pattern of a README, which must not lead out of its folder."""
    if Path(path).is_absolute() or ".." in Path(path).parts or "://" in path:
        raise UserError(f"The README.md of {root} names {path!r}, which leads out of the folder; mend it.")
    return path
