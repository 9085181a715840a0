"""The owner's pictures: found, hashed and decoded, with every fault named before any encoder runs."""

import hashlib
import os
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from PIL import Image

from hf_unlearn.data.images import read_image
from hf_unlearn.errors import UserError

NOT_PICTURES = {".csv", ".json", ".jsonl", ".md", ".txt", ".html", ".parquet", ".npy", ".safetensors"}


@dataclass(frozen=True)
class Picture:
    """One picture file.

    Args:
        name: Its path within the folder, with forward slashes: how reports and CSV files call it.
        path: Where it lies.
        sha256: Hash of the file's bytes, as `sha256sum` prints it.
    """

    name: str
    path: Path
    sha256: str

    def open(self) -> Image.Image:
        """Decode the picture as RGB: upright, transparency on white.

        Raises:
            UserError: When the file is damaged, no picture, or too large.
        """
        try:
            return read_image({"path": str(self.path), "bytes": None})
        except UserError as fault:
            raise UserError(f"The image '{self.name}' cannot be used: {fault}; replace or remove it.") from fault


def readable(name: str) -> str:
    """A file's name as text that any file can hold: names in an old encoding are read as Latin-1."""
    raw = os.fsencode(name)
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def list_pictures(folder: str | Path) -> list[Picture]:
    """Find the pictures of a folder and its subfolders, and check that each can be decoded.

    Args:
        folder: Folder of picture files; hidden files and tables (CSV, JSON, text) in it are passed over.

    Returns:
        The pictures in the order of their names.

    Raises:
        UserError: When the folder is missing or empty, two names are the same once readable, or any file in it cannot
            be read; every such file is listed.
    """
    root = Path(folder)
    if not root.is_dir():
        raise UserError(f"The image folder '{folder}' does not exist; give a folder of pictures.")
    files = sorted(
        (readable(path.relative_to(root).as_posix()), path)
        for path in root.rglob("*")
        if path.is_file()
        and path.suffix.lower() not in NOT_PICTURES
        and not any(part.startswith(".") for part in path.relative_to(root).parts)
    )
    if same := [name for (name, _), (other, _) in pairwise(files) if name == other]:
        raise UserError(
            f"The image folder '{folder}' holds two files that are read as '{same[0]}'; rename one of them."
        )
    pictures = [Picture(name, path, hashlib.sha256(path.read_bytes()).hexdigest()) for name, path in files]
    faults = []
    for picture in pictures:
        try:
            picture.open()
        except UserError as fault:
            faults.append(str(fault))
    if faults:
        raise UserError(" ".join(faults))
    if not pictures:
        raise UserError(f"The image folder '{folder}' holds no picture; put the images to audit into it.")
    return pictures
