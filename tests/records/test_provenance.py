"""What a run computed with, told without naming machine or user."""

import getpass
import json
import platform
import socket

from hf_unlearn.records.provenance import environment_versions, hardware_summary


def test_neither_machine_nor_user_is_named() -> None:
    told = json.dumps([environment_versions(), hardware_summary()])
    assert socket.gethostname() not in told
    assert getpass.getuser() not in told
    assert environment_versions()["python"] == platform.python_version()
    assert "torch" in environment_versions()
