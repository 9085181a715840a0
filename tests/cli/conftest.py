"""The command line, in this process."""

import sys

import pytest
from audit.conftest import arms, captions, checkpoints, endpoint, small_plots  # noqa: F401  (fixtures for test_audit)

from hf_unlearn.cli import main


@pytest.fixture
def cli(monkeypatch, capsys):
    """Run `hf-unlearn` with arguments in this process: exit status, output, errors."""

    def run(*argv: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["hf-unlearn", *argv])
        with pytest.raises(SystemExit) as exit_info:
            main()
        out, err = capsys.readouterr()
        return exit_info.value.code or 0, out, err

    return run
