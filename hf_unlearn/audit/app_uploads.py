"""What comes in over the network: files that visitors send, within bounds; the page fetches none for them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_unlearn.audit.app_limits import MEGABYTE, Limits

if TYPE_CHECKING:
    import gradio as gr
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

MOST_WORDS = 8 * MEGABYTE  # of any other request: names, numbers, and where the files of a job lie


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
