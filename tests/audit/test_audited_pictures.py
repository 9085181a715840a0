import os
import shutil

import pytest
from audit.conftest import folder_of

from hf_unlearn.audit.audited_pictures import collect_pictures
from hf_unlearn.audit.pictures import list_pictures
from hf_unlearn.audit.plan import draw_plan, write_plan
from hf_unlearn.audit.recording import plan_audit
from hf_unlearn.errors import UserError
from hf_unlearn.records.audit_result import Arm


def table(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def test_arms_stand_in_order(arms):
    subjects = collect_pictures(**arms)
    assert [arm.value for arm in subjects.arms] == ["requested"] * 4 + ["still_trained"] * 4 + ["never_trained"] * 4
    assert subjects.names[0] == "picture-00.png" and subjects.names[-1] == "picture-23.png"
    assert not any(subjects.captions) and not any(subjects.owners)


def test_equal_names_get_the_name_of_their_folder(tmp_path):
    subjects = collect_pictures(folder_of(tmp_path / "a", 1), folder_of(tmp_path / "b", 1, 1), None)
    assert subjects.names == ["picture-00.png", "picture-01.png"]
    (tmp_path / "b" / "picture-01.png").rename(tmp_path / "b" / "picture-00.png")
    assert collect_pictures(tmp_path / "a", tmp_path / "b").names == ["a/picture-00.png", "b/picture-00.png"]


def test_captions_and_owners(tmp_path, arms):
    rows = ["image,caption,owner"]
    rows += [f"picture-{i:02}.png,caption {i},{'ann' if i < 2 else 'bob'}" for i in (0, 1, 2, 3, 10, 11, 12, 13)]
    rows += [f"picture-{i}.png,caption {i}," for i in range(20, 24)]
    rows += ["picture-00.png,another,ann", "elsewhere.png,x,y"]
    subjects = collect_pictures(**arms, captions=table(tmp_path / "c.csv", "\n".join(rows)))
    assert subjects.captions[0] == ("caption 0", "another") and subjects.captions[-1] == ("caption 23",)
    assert subjects.owners[:4] == ("ann", "ann", "bob", "bob") and subjects.owners[-1] == ""


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name,caption\n", "needs 'image'"),
        ("image,caption\npicture-00.png,x\n", r"11 pictures have no caption.*picture-01\.png"),
        ("image,caption\npicture-00.png, \n", r"Line 2 of 'c\.csv' has an empty caption for 'picture-00\.png'"),
        ("image,caption,caption\npicture-00.png,a,b\n", "repeats a column"),
        ("image,owner\npicture-00.png,ann\n", r"no owner.*picture-01\.png"),
        ("image,owner\npicture-00.png,ann\npicture-00.png,bob\n", "two owners, ann and bob"),
        (None, "cannot be read"),
    ],
)
def test_a_table_that_does_not_fit_is_named(tmp_path, arms, text, words):
    path = tmp_path / "c.csv"
    if text is not None:
        table(path, text)
    with pytest.raises(UserError, match=words):
        collect_pictures(**arms, captions=path)


def test_a_picture_in_two_arms_is_named(tmp_path, arms):
    shutil.copy(arms["images"] / "picture-02.png", arms["never_trained"] / "copy.png")
    with pytest.raises(UserError, match=r"'copy\.png' \(never_trained\) is also in the arm requested"):
        collect_pictures(**arms)


def test_a_plan_parts_one_folder_by_hash(tmp_path):
    mine = folder_of(tmp_path / "mine", 7)
    plan = plan_audit(mine, tmp_path / "plan", seed=3)
    for i, file in enumerate(sorted(mine.iterdir())):  # names may change, bytes may not
        file.rename(mine / f"renamed-{i}.png")
    subjects = collect_pictures(mine, plan=tmp_path / "plan" / "plan.json")
    assert subjects.plan == plan
    hashes = {arm: {p.sha256 for p, a in zip(subjects.pictures, subjects.arms, strict=True) if a is arm} for arm in Arm}
    assert hashes[Arm.REQUESTED] == set(plan.requested.values()) and len(hashes[Arm.REQUESTED]) == 4
    assert hashes[Arm.STILL_TRAINED] == set(plan.still_trained.values())


@pytest.mark.parametrize("break_it", ["add", "remove", "edit"])
def test_arms_that_leave_the_plan_are_refused(tmp_path, break_it):
    mine = folder_of(tmp_path / "mine", 6)
    plan = draw_plan({picture.name: picture.sha256 for picture in list_pictures(mine)}, 0)
    write_plan(plan, tmp_path / "plan")
    if break_it == "add":
        folder_of(mine, 1, 90)
    elif break_it == "remove":
        (mine / "picture-00.png").unlink()
    else:
        shutil.copy(folder_of(tmp_path / "x", 1, 77) / "picture-77.png", mine / "picture-00.png")
    with pytest.raises(UserError, match="committed to"):
        collect_pictures(mine, plan=tmp_path / "plan" / "plan.json")


def test_a_table_of_millions_of_strangers_takes_no_memory(tmp_path, arms, caplog, monkeypatch):
    monkeypatch.setattr("hf_unlearn.audit.audited_pictures.MOST_STRANGERS", 3)
    rows = "".join(f"elsewhere-{number}.png,a\n" for number in range(9))
    collect_pictures(arms["images"], captions=table(tmp_path / "c.csv", f"image,group\n{rows}"))
    assert "3 or more images named in" in caplog.text


def test_a_table_that_would_never_end_is_not_read(tmp_path, arms):
    os.mkfifo(tmp_path / "c.csv")
    with pytest.raises(UserError, match="is no regular file"):
        collect_pictures(arms["images"], captions=tmp_path / "c.csv")
