"""How programs end: one sentence, a status that tells, and a traceback with `--debug` alone."""

import os
import signal
import subprocess
import sys
import time

import pytest

from hf_unlearn.cli.guard import _sentence

PROGRAM = """
import os, sys, time
from hf_unlearn.cli.guard import guarded
from hf_unlearn.errors import UserError
def main():
    {body}
guarded(main)
"""
ENDS = {
    "bad input": ("raise UserError('ids.txt is empty; give ids')", 2, "error: ids.txt is empty; give ids"),
    "a full disk": ("open('/dev/full', 'w').write('x' * 99999)", 2, "error: no space left on the disk"),
    "a full disk, as safetensors tells it": (
        "from safetensors import SafetensorError; raise SafetensorError('No space left on device (os error 28)')",
        2,
        "error: no space left on the disk (No space left on device (os error 28)); free some",
    ),
    "another fault of safetensors": (
        "from safetensors import SafetensorError; raise SafetensorError('header too small')",
        70,
        "error: unforeseen SafetensorError (header too small); run again with --debug",
    ),
    "a folder for a file": ("open('/tmp')", 2, "error: /tmp: Is a directory"),
    "a missing file": ("open('/nowhere/at.all')", 2, "error: /nowhere/at.all: No such file or directory"),
    "a fault of ours": ("{}['key']", 70, "error: unforeseen KeyError ('key'); run again with --debug"),
    "no words": ("raise RuntimeError", 70, "error: unforeseen RuntimeError (no further words); run again"),
}


def start(body: str, *argv: str, **environment: str) -> subprocess.Popen:
    command = [sys.executable, "-c", PROGRAM.format(body=body), *argv]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment}
    )


@pytest.mark.parametrize("kind", ENDS)
def test_every_end_is_one_sentence_and_its_status(kind):
    body, status, words = ENDS[kind]
    process = start(body)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (status, "") and err.count("\n") == 1 and err.startswith(words)


@pytest.mark.parametrize("kind", ["bad input", "a full disk", "a fault of ours"])
def test_debug_shows_the_traceback(kind):
    process = start(ENDS[kind][0], "--debug")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1 and err.startswith("Traceback") and "in main" in err


@pytest.mark.parametrize("kind", ["RuntimeError", "UserError"])
def test_no_message_quotes_a_secret(kind):
    secrets = {"SOME_API_KEY": "correct horse battery", "HF_UNLEARN_TOKEN": "correct horse battery staple"}
    words = f"{secrets['HF_UNLEARN_TOKEN']}; {secrets['SOME_API_KEY']}; hf_{'x' * 34}; plain"
    _, err = start(f"raise {kind}('{words}')", **secrets).communicate(timeout=60)
    assert "[secret]; [secret]; [secret]; plain" in err and err.count("\n") == 1
    assert not any(word in err for word in ("horse", "staple", "hf_"))


def test_one_process_of_several_speaks():
    process = start(ENDS["bad input"][0], RANK="1")
    assert process.communicate(timeout=60)[1] == "" and process.returncode == 2


@pytest.mark.parametrize(("number", "word"), [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "terminated")])
def test_interrupting_is_no_fault(number, word, tmp_path):
    process = start(f"open({str(tmp_path / 'began')!r}, 'w').close(); time.sleep(60)")
    while not (tmp_path / "began").exists():
        time.sleep(0.02)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert err == f"{word}: what was finished is kept; the same command goes on, with --resume if it takes that\n"


def test_memory_is_told_and_other_faults_of_pytorch_are_not():
    told = _sentence(RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"))
    assert told is not None and told.startswith("out of memory")
    assert _sentence(RuntimeError("shapes do not match")) is None
