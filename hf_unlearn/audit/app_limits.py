"""What one visitor of the app may upload and ask for; the page fetches no files for them."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, count
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_unlearn.audit.embedding_files import is_precomputed
from hf_unlearn.audit.encoders import WANTED_FILES
from hf_unlearn.audit.endpoint_address import is_endpoint
from hf_unlearn.audit.pictures import NOT_PICTURES
from hf_unlearn.errors import UserError, listed
from hf_unlearn.parsing import PICTURE_DAMAGE

if TYPE_CHECKING:
    import gradio as gr
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

MEGABYTE = 2**20
MOST_NAME = 240  # bytes of a file's name: a number may come before it
MOST_MODEL_NAME = 300  # letters of what a visitor typed
MOST_TEXT = 64 * MEGABYTE  # of a configuration or a tokenizer
MOST_WORDS = 8 * MEGABYTE  # of a request without files: names, numbers, and where the files of a job lie


@dataclass(frozen=True)
class Limits:
    """Limits of one job.

    Args:
        pictures: Pictures in one arm.
        upload_bytes: Bytes of one arm's pictures.
        picture_pixels: Pixels of one picture.
        model_bytes: Bytes that a model of the Hub may have, asked before anything is fetched; None for any size.
        models: Hub ids that may be audited, `id@revision` where not the newest; None for all.
        views: Views a picture.
        file_bytes: Bytes of one uploaded file, refused while it comes in.
        stored_bytes: Bytes of all visitors' files that lie here at once, which go after an hour; None for any.
        seconds: Time in which the models must have answered; None for any.
        at_once: Jobs that run at the same time, for all visitors.
        waiting: Jobs that wait for their turn; further ones are sent away.
    """

    pictures: int = 5_000
    upload_bytes: int = 4_096 * MEGABYTE
    picture_pixels: int = 100_000_000
    model_bytes: int | None = None
    models: frozenset[str] | None = None
    views: int = 40
    file_bytes: int = 4_096 * MEGABYTE
    stored_bytes: int | None = None
    seconds: float | None = None
    at_once: int = 1
    waiting: int | None = None

    @classmethod
    def public(cls, models: frozenset[str] | None = None) -> Limits:
        """Limits for a page that anybody can reach."""
        return cls(
            pictures=200,
            upload_bytes=200 * MEGABYTE,
            picture_pixels=25_000_000,
            model_bytes=2_048 * MEGABYTE,
            models=models,
            views=20,
            file_bytes=64 * MEGABYTE,
            stored_bytes=4_096 * MEGABYTE,
            seconds=1_200,
            waiting=8,
        )

    def deadline(self) -> float | None:
        """When a job that begins now must have its answers, as `time.monotonic` counts."""
        return None if self.seconds is None else time.monotonic() + self.seconds


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
    names = [Path(file).name for file in files]
    if strange := [name for name in names if name.startswith(".") or Path(name).suffix.lower() in NOT_PICTURES]:
        raise UserError(f"{listed(strange)} is no picture by its name; rename or leave it out.")
    if long := [name for name in names if len(os.fsencode(name)) > MOST_NAME]:
        raise UserError(f"'{long[0][:40]}...' has a name of more than {MOST_NAME} bytes; give it a shorter one.")
    size = sum(Path(file).stat().st_size for file in files)
    if size > limits.upload_bytes:
        raise UserError(
            f"The pictures have {size / MEGABYTE:.0f} MB, and {limits.upload_bytes / MEGABYTE:.0f} MB are allowed; "
            "upload fewer or smaller ones."
        )
    folder.mkdir()
    for file, name in zip(files, names, strict=True):
        _check_pixels(Path(file), limits)
        candidates = (folder / called for called in chain([name], (f"{number}-{name}" for number in count(2))))
        shutil.copyfile(file, next(path for path in candidates if not path.exists()))
    return folder


def one_file(file: str | None, limits: Limits) -> str | None:
    """An uploaded file beside the pictures, such as a table or a recording; None where there is none.

    Raises:
        UserError: It is too large.
    """
    if file and (size := Path(file).stat().st_size) > limits.file_bytes:
        raise UserError(
            f"'{Path(file).name}' has {size / MEGABYTE:.0f} MB, and {limits.file_bytes / MEGABYTE:.0f} MB are allowed; "
            "run the audit locally."
        )
    return file or None


def whole_number(value: float | None, low: int, high: int, what: str) -> int:
    """A number that was asked for on the page, or past it.

    Raises:
        UserError: It is no whole number from `low` to `high`.
    """
    if value is None or not low <= value <= high or value != int(value):  # a field that was emptied is None
        raise UserError(f"{what} must be a whole number from {low} to {high}, not {value}.")
    return int(value)


def usable_model(name: str | None, side: str, hub_only: bool, limits: Limits) -> str:
    """Check the name of a model, and on a public page its size, before anything is fetched.

    Args:
        name: What the visitor typed.
        side: `before` or `after`.
        hub_only: Whether it must be a public Hub id.
        limits: Which models are allowed, and how large.

    Raises:
        UserError: When it is missing, no Hub id, not allowed, or too large.
    """
    name = (name or "").strip()
    if not name:
        raise UserError(f"The model {side} has no name; give a Hub id such as org/clip.")
    if not hub_only:
        return name
    no_id = len(name) > MOST_MODEL_NAME or not name.isprintable()
    if no_id or is_endpoint(name) or is_precomputed(name) or Path(name).exists():
        raise UserError(f"The model {side} must be a Hub id such as org/clip; run the audit locally for anything else.")
    # Whole names: anybody may open a pull request, whose files are a revision of the repository.
    if limits.models is not None and name not in limits.models:
        raise UserError(f"The model {side} is not among those audited here: {', '.join(sorted(limits.models))}.")
    if limits.model_bytes is None:
        return name
    size, commit = _hub_size(name)
    if size > limits.model_bytes:
        raise UserError(
            f"The model {side} has {size / MEGABYTE:.0f} MB, and {limits.model_bytes / MEGABYTE:.0f} MB are allowed "
            "here; run the audit locally."
        )
    return f"{name.partition('@')[0]}@{commit}" if commit else name


def _hub_size(name: str) -> tuple[float, str | None]:
    """Bytes of the files that an audit would fetch of a public model, and the commit that has them."""
    from fnmatch import fnmatch

    from huggingface_hub import model_info
    from huggingface_hub.errors import HFValidationError, HTTPError

    repository, _, revision = name.partition("@")
    try:
        info = model_info(repository, revision=revision or None, token=False, files_metadata=True)
    except HFValidationError as error:
        raise UserError(f"'{name}' is no Hub id; check the spelling.") from error
    except (HTTPError, OSError) as error:
        raise UserError(f"The model '{name}' cannot be looked up on the Hub; check its name.") from error
    files = info.siblings or []
    wanted = [file for file in files if any(fnmatch(file.rfilename, pattern) for pattern in WANTED_FILES)]
    sizes = {file.rfilename: inf if file.size is None else file.size for file in wanted}
    # Read whole, into many times their bytes.
    if large := [file for file, size in sizes.items() if size > MOST_TEXT and not file.endswith(".safetensors")]:
        raise UserError(f"The model '{name}' has over {MOST_TEXT // MEGABYTE} MB of {large[0]}; name another.")
    return sum(sizes.values()), info.sha


def _check_pixels(path: Path, limits: Limits) -> None:
    """Refuse a picture whose header announces more pixels than are allowed; what is no picture is told later by
    name.
    """
    from PIL import Image

    from hf_unlearn.data.images import InFewPieces, opened_formats

    try:
        with Image.open(InFewPieces(path.read_bytes()), formats=opened_formats()) as image:
            pixels = image.width * image.height
    except (*PICTURE_DAMAGE, Image.DecompressionBombError):
        return
    if pixels > limits.picture_pixels:
        raise UserError(
            f"'{path.name}' has {pixels:,} pixels, and {limits.picture_pixels:,} are allowed; upload a smaller version."
        )


def upload(**settings: Any) -> gr.File:
    """A place for files of a visitor; where one names an address instead, Gradio would fetch it, of any size."""
    import gradio as gr

    part = gr.File(**settings)
    keep = part.async_move_resource_to_block_cache

    async def keep_what_was_sent(sent: str | Path | None) -> str | None:
        if str(sent).lower().startswith(("http:", "https:")):
            raise gr.Error("An address is no upload; send the file itself.", print_exception=False)
        return await keep(sent)

    # A class of its own would make Gradio write a stub beside this file.
    vars(part)["async_move_resource_to_block_cache"] = keep_what_was_sent
    return part


class BoundedRequests:
    """Middleware that ends a request whose body is larger than allowed, and refuses files once their folder is full.

    Args:
        app: What answers the requests.
        limits: Of a job's files, and of those of all visitors, which go after an hour.
    """

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self.app, self.limits = app, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and no more of its body than is allowed."""
        from starlette.responses import PlainTextResponse

        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        upload = scope["path"].rstrip("/").endswith("/upload")
        left = self._room() if upload else MOST_WORDS
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        if not announced.isdigit() or int(announced[:20]) > left:
            words = "The files that lie here are too many or too large; try again in an hour, or run the audit locally."
            return await PlainTextResponse(words, 413)(scope, receive, send)

        async def bounded() -> Message:
            nonlocal left
            message = await receive()
            left -= len(message.get("body", b""))
            return message if left >= 0 else {"type": "http.disconnect"}

        await self.app(scope, bounded, send)

    def _room(self) -> int:
        """Bytes that may be uploaded now: those of one arm's pictures, less where others fill the disk."""
        from gradio.utils import get_upload_folder

        most = self.limits.upload_bytes + MOST_WORDS
        if self.limits.stored_bytes is None:
            return most
        stored = sum(path.stat().st_size for path in Path(get_upload_folder()).rglob("*") if path.is_file())
        return min(most, self.limits.stored_bytes - stored)


def launch_options(limits: Limits, port: int | None) -> dict[str, Any]:
    """How a page is launched within its limits."""
    from starlette.middleware import Middleware

    bounded = Middleware(BoundedRequests, limits=limits)
    return {"server_port": port, "max_file_size": limits.file_bytes, "app_kwargs": {"middleware": [bounded]}}
