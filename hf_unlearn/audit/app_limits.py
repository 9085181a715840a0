"""What one visitor of the app may upload and ask for."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hf_unlearn.audit.embedding_files import is_precomputed
from hf_unlearn.audit.encoders import WANTED_FILES
from hf_unlearn.audit.endpoint_address import is_endpoint
from hf_unlearn.errors import UserError

MEGABYTE = 2**20


@dataclass(frozen=True)
class Limits:
    """Limits of one job.

    Args:
        pictures: Pictures in one arm.
        upload_bytes: Bytes of one arm's pictures.
        picture_pixels: Pixels of one picture.
        model_bytes: Bytes that a model of the Hub may have, asked before anything is fetched; None for any size.
        models: Hub ids that may be audited; None for all.
        views: Views a picture.
        at_once: Jobs that run at the same time, for all visitors.
    """

    pictures: int = 5_000
    upload_bytes: int = 4_096 * MEGABYTE
    picture_pixels: int = 100_000_000
    model_bytes: int | None = None
    models: frozenset[str] | None = None
    views: int = 40
    at_once: int = 1

    @classmethod
    def public(cls, models: frozenset[str] | None = None) -> "Limits":
        """Limits for a page that anybody can reach."""
        return cls(
            pictures=200,
            upload_bytes=200 * MEGABYTE,
            picture_pixels=25_000_000,
            model_bytes=2_048 * MEGABYTE,
            models=models,
            views=20,
        )


def copy_uploads(files: Sequence[str] | None, folder: Path, limits: Limits, what: str) -> Path:
    """Copy uploaded pictures into one folder, under their own names; two of one name are two pictures.

    Args:
        files: The uploaded files.
        folder: A folder to make.
        limits: How many and how large they may be.
        what: What they are, for the message.

    Returns:
        The folder.

    Raises:
        UserError: When there are none, or too many, or they are too large.
    """
    if not files:
        raise UserError(f"Nothing to audit yet; upload {what}.")
    if len(files) > limits.pictures:
        raise UserError(f"{len(files)} pictures were uploaded, and {limits.pictures} are allowed; upload fewer.")
    size = sum(Path(file).stat().st_size for file in files)
    if size > limits.upload_bytes:
        raise UserError(
            f"The pictures have {size / MEGABYTE:.0f} MB, and {limits.upload_bytes / MEGABYTE:.0f} MB are allowed; "
            "upload fewer or smaller ones."
        )
    folder.mkdir()
    for number, file in enumerate(files, start=1):
        name = Path(file).name
        _check_pixels(Path(file), limits)
        shutil.copyfile(file, folder / (name if not (folder / name).exists() else f"{number}-{name}"))
    return folder


def usable_model(name: str, side: str, hub_only: bool, limits: Limits) -> str:
    """Check the name of a model, and on a public page its size, before anything is fetched.

    Args:
        name: What the visitor typed.
        side: `before` or `after`.
        hub_only: Whether it must be a public Hub id.
        limits: Which models are allowed, and how large.

    Raises:
        UserError: When it is missing, no Hub id, not allowed, or too large.
    """
    name = name.strip()
    if not name:
        raise UserError(f"The model {side} has no name; give a Hub id such as org/clip.")
    if not hub_only:
        return name
    if is_endpoint(name) or is_precomputed(name) or Path(name).exists():
        raise UserError(f"The model {side} must be a Hub id such as org/clip; run the audit locally for anything else.")
    if limits.models is not None and name.partition("@")[0] not in limits.models:
        raise UserError(f"The model {side} is not among those audited here: {', '.join(sorted(limits.models))}.")
    if limits.model_bytes is not None and (size := _hub_size(name)) > limits.model_bytes:
        raise UserError(
            f"The model {side} has {size / MEGABYTE:.0f} MB, and {limits.model_bytes / MEGABYTE:.0f} MB are "
            "allowed here; "
            "run the audit locally."
        )
    return name


def _hub_size(name: str) -> int:
    """Bytes of the files that an audit would fetch of a public model."""
    from fnmatch import fnmatch

    from huggingface_hub import model_info
    from huggingface_hub.errors import HFValidationError, HTTPError

    repository, _, revision = name.partition("@")
    try:
        files = model_info(repository, revision=revision or None, token=False, files_metadata=True).siblings or []
    except HFValidationError as error:
        raise UserError(f"'{name}' is no Hub id; check the spelling.") from error
    except (HTTPError, OSError) as error:
        raise UserError(f"The model '{name}' cannot be looked up on the Hub; check its name.") from error
    wanted = [file for file in files if any(fnmatch(file.rfilename, pattern) for pattern in WANTED_FILES)]
    return sum(file.size or 0 for file in wanted)


def _check_pixels(path: Path, limits: Limits) -> None:
    """Refuse a picture whose header announces more pixels than are allowed; what is no picture is told later by
    name.
    """
    from PIL import Image, UnidentifiedImageError

    from hf_unlearn.data.images import FORMATS

    Image.init()
    try:
        with Image.open(path, formats=[name for name in FORMATS if name in Image.OPEN]) as image:
            pixels = image.width * image.height
    except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError):
        return
    if pixels > limits.picture_pixels:
        raise UserError(
            f"'{path.name}' has {pixels:,} pixels, and {limits.picture_pixels:,} are allowed; upload a smaller version."
        )
