import pytest

from hf_unlearn.files import finished_folder


def test_appears_only_when_finished(tmp_path):
    target = tmp_path / "run"
    with finished_folder(target) as folder:
        (folder / "a.txt").write_text("new")
        assert not target.exists()
    assert (target / "a.txt").read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


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
