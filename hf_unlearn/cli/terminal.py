"""What reaches the terminal: text from outside made harmless, and no fault when the reader has gone."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO, cast

from hf_unlearn.text import printable


class _Terminal:
    """A text stream that shows any name, and lets a program end as it would have when its reader has gone."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        if not isinstance(text, str):  # as other text streams do, so that this one is taken for one
            raise TypeError(f"a text is written, not {type(text).__name__}")
        try:
            self._stream.write(printable(text, keep="\n\t"))
        except BrokenPipeError:
            self._discard()
        return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except BrokenPipeError:
            self._discard()

    def _discard(self) -> None:
        """Let what is still to be written go nowhere: `hf-unlearn ... | head -1` has read what it wanted."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)


@contextmanager
def terminal() -> Iterator[None]:
    """Print through it within."""
    stream = sys.stdout
    shown = _Terminal(stream)
    sys.stdout = cast(TextIO, shown)
    try:
        yield
    finally:
        shown.flush()
        sys.stdout = stream


def quiet_loading() -> None:
    """Show no bars while weights and rows are read; those of downloads stay."""
    import datasets
    import huggingface_hub.utils
    from transformers.utils import logging

    downloads = not huggingface_hub.utils.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    logging.disable_progress_bar()
    if downloads:
        huggingface_hub.utils.enable_progress_bars()
