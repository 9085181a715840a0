"""Run a function in a process of its own and kill it, at the n-th touch of a file or after some time."""

import faulthandler
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

TOUCHES = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "shutil.rmtree", "os.chmod"}
LONGEST = 300  # seconds after which a process that hangs tells where, and ends


def forked(function: Callable[[], object], *, watch: Path, kill_at: int | None = None, kill_after: float | None = None):
    """Run `function` in a forked process.

    Args:
        function: what to run; an exception makes the exit status 1, and a standstill of minutes -14, of SIGALRM.
        watch: opening, renaming and removing anything below this folder counts as a touch.
        kill_at: send SIGKILL at this touch, before it happens.
        kill_after: send SIGKILL after so many seconds.

    Returns:
        The exit status (negative for a signal), and the number of touches where none killed it.
    """
    reader, writer = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        faulthandler.register(signal.SIGALRM, file=2, chain=True)  # pytest's own watch is a thread, which forks lack
        signal.setitimer(signal.ITIMER_REAL, LONGEST)
        os.close(reader)
        os._exit(_run(function, watch, kill_at, writer))
    os.close(writer)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    with os.fdopen(reader) as pipe:
        count = pipe.read()
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), int(count or 0)


def _run(function: Callable[[], object], watch: Path, kill_at: int | None, writer: int) -> int:
    touches, root = 0, str(watch)

    def count(event: str, arguments: tuple) -> None:
        nonlocal touches
        if event in TOUCHES and str(arguments[0]).startswith(root):
            touches += 1
            if touches == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    try:
        function()
    except BaseException:  # noqa: BLE001 (the process ends here, whatever it was)
        traceback.print_exc()
        return 1
    os.write(writer, str(touches).encode())
    return 0
