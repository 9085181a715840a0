"""What kills processes in these tests holds up no other process."""

import os
import signal
import threading
from pathlib import Path

from datasets.utils import tqdm
from faults.killing import forked


def draw_a_bar() -> None:
    with Path(os.devnull).open("w") as nowhere:
        assert list(tqdm(range(3), file=nowhere)) == [0, 1, 2]


def killed_while_drawing() -> None:
    tqdm.get_lock().acquire()
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_killed_while_it_draws_a_bar_keeps_nobody_else_from_drawing(tmp_path):
    draw_a_bar()
    assert forked(killed_while_drawing, watch=tmp_path)[0] == -signal.SIGKILL
    assert forked(draw_a_bar, watch=tmp_path)[0] == 0
    draw_a_bar()


def test_a_process_that_hangs_ends_and_tells_where(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr("faults.killing.LONGEST", 0.5)
    assert forked(threading.Event().wait, watch=tmp_path)[0] == -signal.SIGALRM
    assert "in wait" in capfd.readouterr().err
