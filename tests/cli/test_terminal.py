"""What reaches the terminal, whatever it is called and whoever reads it."""

import os
import subprocess
import sys

import pytest

from hf_unlearn.cli import COMMANDS


def program(*lines: str, **environment: str) -> list[str]:
    code = "\n".join(["from hf_unlearn.cli.guard import guarded", "def main():", *(f"    {line}" for line in lines)])
    return [sys.executable, "-c", f"{code}\nguarded(main)"]


def test_a_program_prints_any_name_on_any_terminal():
    lines = ("print('Zo\\udceb \\x1b[2J ±')", "import logging; logging.getLogger('hf_unlearn').warning('\\x1b[2J')")
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(program(*lines), capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout) == (0, "Zo\\udceb \\x1b[2J \\xb1\n") and "\x1b" not in done.stderr


@pytest.mark.parametrize("package", ["huggingface_hub", "datasets"])
def test_what_a_package_warns_of_is_said_once(package):
    lines = (f"from {package}.utils import logging", f"logging.get_logger('{package}.inner').warning('once')")
    done = subprocess.run(program(*lines), capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "once\n")


def test_a_fault_that_quotes_a_name_is_told():
    lines = ("from hf_unlearn.errors import UserError", "raise UserError('no picture \\x1b[31mZo\\udceb')")
    done = subprocess.run(program(*lines), capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "error: no picture \\x1b[31mZo\\udceb\n")


@pytest.mark.parametrize("status", [0, 1])
def test_a_reader_that_has_gone_changes_no_answer(status):
    """`hf-unlearn verify X | head -1` ends with verify's own status, and finishes what it does."""
    lines = ("import sys", "for i in range(100_000): print('line', i)", f"sys.exit({status})")
    with subprocess.Popen(program(*lines), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        assert running.stdout.readline() == "line 0\n"
        running.stdout.close()
        told = running.stderr.read()
    assert (running.returncode, told) == (status, "")


def test_help_too(tmp_path):
    command = f"{sys.executable} -m hf_unlearn.cli --help | head -1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.stdout == "Usage: hf-unlearn [OPTIONS] COMMAND [ARGS]...\n0\n" and done.stderr == ""


def test_env_works_where_torch_is_broken(tmp_path):
    (tmp_path / "torch.py").write_text("raise ImportError('libcudart.so.13: cannot open\\nshared object file')")
    environment = {
        **os.environ,
        "PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}",
        "HF_TOKEN": "hf_secret",
    }
    command = [sys.executable, "-m", "hf_unlearn.cli"]
    done = subprocess.run([*command, "env"], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert "cannot be imported: ImportError: libcudart.so.13: cannot open" in done.stdout
    assert "transformers" in done.stdout and "secret" not in done.stdout
    for words in (["--version"], ["--help"]):
        assert subprocess.run([*command, *words], capture_output=True, env=environment).returncode == 0


def test_completion_knows_the_commands_and_their_options():
    def completed(words: str) -> set[str]:
        environment = {**os.environ, "_HF_UNLEARN_COMPLETE": "complete_bash", "COMP_WORDS": words}
        environment |= {"COMP_CWORD": str(len(words.split(" ")) - 1)}
        command = [sys.executable, "-c", "from hf_unlearn.cli import main; main()"]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        return set(done.stdout.split())

    assert completed("hf-unlearn ") >= set(COMMANDS)
    assert "--base" in completed("hf-unlearn evaluate --b")


def test_a_user_without_a_home_folder_is_told_what_to_set():
    """As pathlib says it of a user whom the system does not know, such as one of `docker --user`."""
    lines = ("raise RuntimeError('Could not determine home directory.')",)
    done = subprocess.run(program(*lines), capture_output=True, text=True)
    assert done.returncode == 2 and "no home folder; set HOME, or HF_UNLEARN_CACHE" in done.stderr
