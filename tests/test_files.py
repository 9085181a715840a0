import errno
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest

from hf_unlearn import files
from hf_unlearn.audit.run import run_audit
from hf_unlearn.errors import UserError
from hf_unlearn.files import clear_interrupted, finished_folder, owned, refuse_unwritable, write_atomically
from hf_unlearn.runs.command_line import parse_run
from hf_unlearn.runs.tuning import Search, tune
from hf_unlearn.runs.unlearn import unlearn_and_compare


def test_appears_only_when_finished(tmp_path):
    target = tmp_path / "run"
    with finished_folder(target) as folder:
        (folder / "a.txt").write_text("new")
        assert not target.exists()
    assert (target / "a.txt").read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


WRITE = """
import os, sys
from pathlib import Path
from hf_unlearn import files
step = sys.argv[2]
if step == "file":
    files.os.fsync = lambda _: os._exit(9)
    files.write_atomically(Path(sys.argv[1]) / "run.json", "half")
with files.finished_folder(Path(sys.argv[1]) / "model") as folder:
    (folder / "a.txt").write_text("new")
    if step == "folder":
        os._exit(9)
    Path.replaced, Path.rename = Path.rename, lambda path, to: path.replaced(to) and os._exit(9)
"""


@pytest.mark.parametrize("step", ["file", "folder", "between two names"])
@pytest.mark.parametrize("name", ["?*", None])
def test_what_a_killed_write_left_is_cleared_and_nothing_else(tmp_path, step, name):
    for file in ("run.json", "mine.tmp", ".mine.tmp", "other.old"):
        write_atomically(tmp_path / file, "old")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "a.txt").write_text("old")
    before = sorted(tmp_path.rglob("*"))
    assert subprocess.run([sys.executable, "-c", WRITE, tmp_path, step]).returncode == 9
    assert sorted(tmp_path.rglob("*")) != before
    clear_interrupted(tmp_path, "other")
    assert sorted(tmp_path.rglob("*")) != before
    clear_interrupted(tmp_path, name or ("run.json" if step == "file" else "model"))
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "run.json").read_text() == (tmp_path / "model" / "a.txt").read_text() == "old"


def test_failure_keeps_what_was_there(tmp_path):
    target = tmp_path / "run"
    target.mkdir()
    (target / "a.txt").write_text("old")
    with pytest.raises(RuntimeError), finished_folder(target) as folder:
        (folder / "a.txt").write_text("half")
        raise RuntimeError
    assert (target / "a.txt").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_replaces_what_was_there(tmp_path):
    target = tmp_path / "run"
    target.mkdir()
    (target / "stale.txt").write_text("old")
    with finished_folder(target) as folder:
        (folder / "a.txt").write_text("new")
    assert [p.name for p in target.iterdir()] == ["a.txt"]


HOLD = """
import sys
from pathlib import Path
from hf_unlearn.files import owned
with owned(Path(sys.argv[1]), "A test"):
    print("owned", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def other_owner(tmp_path):
    """A process that owns a folder until it is told to end, or killed."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "out")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "owned\n"
    yield process
    process.kill()
    process.wait()


def test_a_folder_has_one_owner_until_its_process_ends(tmp_path, other_owner):
    told = r"^Another run is still at work in .*out; wait .* another --output_dir$"
    with pytest.raises(UserError, match=told), owned(tmp_path / "out", "Another run"):
        pytest.fail("two owners")
    other_owner.communicate("", timeout=20)
    assert not (tmp_path / "out").exists(), "an empty folder that was made for the lock goes with it"
    with owned(tmp_path / "out", "Another run") as folder:
        (folder / "result").write_text("1")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["result"]


def test_the_lock_of_a_killed_owner_is_free(tmp_path, other_owner):
    other_owner.kill()
    other_owner.wait()
    assert (tmp_path / "out" / ".lock").exists()
    with owned(tmp_path / "out", "Another run"):
        pass


def test_waiting_for_the_other_owner(tmp_path, other_owner):
    threading.Timer(0.3, other_owner.stdin.close).start()
    with owned(tmp_path / "out", "Another training", wait=True):
        assert other_owner.poll() is not None or other_owner.wait(5) == 0


def test_an_error_releases_the_lock_and_passes(tmp_path):
    with pytest.raises(RuntimeError), owned(tmp_path / "a" / "out", "A run"):
        raise RuntimeError
    assert not (tmp_path / "a").exists()
    with owned(tmp_path / "a" / "out", "A run"):
        pass


def test_a_place_that_cannot_be_written_to_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(UserError, match=r"file/out cannot be written to \(Not a directory\)"),
        owned(tmp_path / "file" / "out", "x"),
    ):
        pytest.fail("owned")


def test_without_fcntl_the_system_of_windows_is_asked(tmp_path, monkeypatch):
    asked = []

    def locking(descriptor, mode, size):
        asked.append(mode)
        if len(asked) > 1:
            raise OSError(errno.EACCES, "locked")

    windows = SimpleNamespace(LK_LOCK=1, LK_NBLCK=2, locking=locking)
    monkeypatch.setattr(files, "fcntl", None)
    monkeypatch.setattr(files, "msvcrt", windows, raising=False)
    with owned(tmp_path, "A run"), pytest.raises(UserError, match="A run is still at work"), owned(tmp_path, "A run"):
        pytest.fail("two owners")
    assert asked == [2, 2]


def test_a_run_is_refused_while_another_is_at_work(tmp_path, other_owner, shapes):
    before = sorted(path.name for path in (tmp_path / "out").iterdir())
    run = parse_run(["--output_dir", str(tmp_path / "out"), "--dataset_name", "openmoji", "--overwrite"])
    with pytest.raises(UserError, match="Another run is still at work in"):
        unlearn_and_compare(run, lambda *_: pytest.fail("a model was built"))
    search = Search(("--dataset_name", "openmoji", "--family", "clip"), ("fine_tune",), trials=1)
    with pytest.raises(UserError, match="Another search is still at work in"):
        tune(search, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == before


def test_an_audit_is_refused_while_another_is_at_work(tmp_path, other_owner):
    with pytest.raises(UserError, match="Another audit is still at work in"):
        run_audit(tmp_path / "a", tmp_path / "b", tmp_path, tmp_path / "out")


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("file", "Not a directory"),
        ("file/below", "Not a directory"),
        ("file/below/deeper", "Not a directory"),
        ("/proc/nowhere/below", "No such file or directory"),
        ("nowhere", "No such file or directory"),  # a link that leads there
        ("long" * 99, "File name too long"),
    ],
)
def test_a_folder_that_could_not_be_written_to_is_refused(tmp_path, place, reason):
    (tmp_path / "file").write_text("")
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    with pytest.raises(UserError, match=rf"{place} cannot be written to \({reason}\); choose another --to$"):
        refuse_unwritable(tmp_path / place, "--to")
    assert {path.name for path in tmp_path.iterdir()} == {"file", "nowhere"}


def test_a_folder_that_can_be_written_to_is_as_it_was(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for place in (tmp_path, tmp_path / "new" / "below", "new", "."):
        refuse_unwritable(place)
    assert not any(tmp_path.iterdir())
