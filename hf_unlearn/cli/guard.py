"""How a program of this library ends: on a fault with one sentence and a non-zero exit, and a traceback on request.

Exit status: 0 when all went well; 1 for an answer that a script asked to be told of (a verdict of `audit --fail_on`, a
statement that does not hold); 2 for bad input and for faults of the machine that can be told (a full disk, memory); 70
for anything unforeseen; 130 when interrupted, 143 when terminated. With `--debug` a fault ends as Python's own do, with
its traceback and 1.
"""

import io
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import NoReturn

from hf_unlearn.cli.terminal import terminal
from hf_unlearn.errors import UserError, first_line, is_disk_full, is_out_of_memory, sentence_of_panic
from hf_unlearn.text import printable

UNFORESEEN = 70  # EX_SOFTWARE of sysexits.h: neither an answer nor a refusal


def guarded(main: Callable[[], None]) -> None:
    """Run a program; tell what ends it in one sentence, unless `--debug` is given."""
    debug = "--debug" in sys.argv
    if debug:
        sys.argv.remove("--debug")
    else:
        sys.excepthook = _tell_unforeseen
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name in another encoding is shown, whatever the terminal
    logging.basicConfig(format="%(message)s")
    for handler in logging.getLogger().handlers:
        handler.setFormatter(_Printable())
    for package in ("huggingface_hub", "datasets"):  # which bring handlers of their own, so that all was said twice
        logging.getLogger(package).propagate = False
    if os.environ.get("RANK", "0") == "0":  # one process tells how it goes, each of them what it warns of
        logging.getLogger("hf_unlearn").setLevel(logging.INFO)
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, _end)
    try:
        with terminal():
            main()
    except BaseException as error:
        sentence = _sentence(error)
        if debug or sentence is None:
            raise
        _tell_fault(sentence)
        sys.exit(2)
    finally:
        _leave_processes()


class _Printable(logging.Formatter):
    """Shows a message without what a terminal would act on: it may quote names and answers from outside."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record), keep="\n\t")


def _leave_processes() -> None:
    """Leave the process group of `accelerate launch`: its threads would else abort the exit of a finished program."""
    if "torch" not in sys.modules:
        return
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def _sentence(error: BaseException) -> str | None:
    """What a user is told of a fault that can be foreseen; None for any other."""
    if isinstance(error, UserError):
        return str(error)
    if is_disk_full(error):
        words = first_line(error)
        return f"no space left on the disk ({words}); free some, what was finished before is as it was"
    if isinstance(error, OSError):
        if not error.strerror:
            return None
        if not error.filename:
            return f"the system says '{error.strerror}', of no file in particular; check the disk and the network"
        return f"{error.filename}: {error.strerror}; name another path, or change what is there or who may use it"
    if isinstance(error, RuntimeError) and "home directory" in str(error):  # of pathlib, as in docker --user
        return "this user has no home folder; set HOME, or HF_UNLEARN_CACHE, to a folder that can be written to"
    if isinstance(error, UnicodeEncodeError) or (isinstance(error, ValueError) and "embedded null" in str(error)):
        return f"a name, path or token holds a character that none can have ({error}); type it anew"
    if isinstance(error, RuntimeError) and "Symlink loop" in str(error):  # of pathlib
        return f"{str(error).removeprefix('Symlink loop from ')}: its links lead in a circle; name another path"
    if is_out_of_memory(error):
        return "out of memory; use a device with more, or --use_cpu true"
    panic = sentence_of_panic(error)
    return panic and f"{panic}; save the tokenizer that the model was trained with beside it"


def _tell_unforeseen(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> NoReturn:
    words = (str(error).strip() or "no further words").splitlines()[0]
    _tell_fault(f"unforeseen {kind.__name__} ({words}); run again with --debug for the traceback, and report it")
    sys.exit(UNFORESEEN)


def _tell_fault(sentence: str) -> None:
    """Tell a fault without the secrets that it may quote, such as the address of a request: terminals get logged."""
    from hf_unlearn.hub.screening import redacted

    _tell(f"error: {redacted(sentence)}")


def _end(number: int, frame: FrameType | None) -> NoReturn:
    word = "interrupted" if number == signal.SIGINT else "terminated"
    _tell(f"{word}: what was finished is kept; the same command goes on, with --resume if it takes that")
    sys.exit(128 + number)


def _tell(sentence: str) -> None:
    if int(os.environ.get("RANK", "0")) == 0:
        print(printable(sentence), file=sys.stderr)
