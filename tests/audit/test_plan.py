import csv
import hashlib
import json
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
from audit.conftest import folder_of

from hf_unlearn.audit.pictures import Picture
from hf_unlearn.audit.plan import AuditPlan, check_plan, draw_plan, read_plan, write_plan
from hf_unlearn.audit.recording import plan_audit, record_embeddings
from hf_unlearn.errors import UserError
from hf_unlearn.files import owned
from hf_unlearn.records.audit_result import Arm


def hashes(n: int) -> dict[str, str]:
    return {f"{i}.png": hashlib.sha256(bytes([i])).hexdigest() for i in range(n)}


def test_the_halves_partition_the_images_and_depend_on_the_seed_alone() -> None:
    images = hashes(9)
    plan = draw_plan(images, seed=1)
    assert plan.requested | plan.still_trained == images
    assert not set(plan.requested) & set(plan.still_trained)
    assert (len(plan.requested), len(plan.still_trained)) == (5, 4)
    assert draw_plan(dict(reversed(images.items())), seed=1) == plan
    assert draw_plan(images, seed=2) != plan


def test_every_half_is_equally_likely() -> None:
    images = hashes(4)
    counts: dict[frozenset[str], int] = {}
    for seed in range(3_000):
        half = frozenset(draw_plan(images, seed).requested)
        counts[half] = counts.get(half, 0) + 1
    assert len(counts) == 6
    assert sum((count - 500) ** 2 / 500 for count in counts.values()) < 15.1  # chi-square with 5 degrees, p = .01


def test_copies_of_one_image_stay_together() -> None:
    images = hashes(6) | {"copy.png": hashes(6)["0.png"]}
    for seed in range(20):
        plan = draw_plan(images, seed)
        assert ("copy.png" in plan.requested) == ("0.png" in plan.requested)


def test_one_image_cannot_be_split() -> None:
    with pytest.raises(UserError, match="at least 2 different images, got 1"):
        draw_plan({"a.png": "x", "b.png": "x"}, seed=0)


def test_pictures_without_a_cluster_are_named() -> None:
    with pytest.raises(UserError, match=r"No cluster is given for b\.png, c\.png; give one"):
        draw_plan({"a.png": "1", "b.png": "2", "c.png": "3"}, 0, {"a.png": 1})


def test_files_round_trip(tmp_path: Path) -> None:
    plan = draw_plan(hashes(8), seed=3)
    write_plan(plan, tmp_path / "plan")
    assert read_plan(tmp_path / "plan" / "plan.json") == plan
    with (tmp_path / "plan" / "request.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["id"]: row["sha256"] for row in rows} == plan.requested
    with (tmp_path / "plan" / "still_trained.csv").open() as file:
        assert {row["id"] for row in csv.DictReader(file)} == set(plan.still_trained)


def test_the_commitment_is_a_hash_anyone_can_recompute() -> None:
    plan = draw_plan(hashes(4), seed=3)
    content = {key: value for key, value in plan.to_dict().items() if key != "sha256"}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    assert plan.sha256 == hashlib.sha256(text.encode()).hexdigest()


def test_a_committed_plan_is_never_replaced(tmp_path: Path) -> None:
    write_plan(draw_plan(hashes(4), seed=3), tmp_path)
    before = (tmp_path / "plan.json").read_bytes()
    with pytest.raises(UserError, match="never replaced"):
        write_plan(draw_plan(hashes(4), seed=4), tmp_path)
    assert (tmp_path / "plan.json").read_bytes() == before


def test_an_edited_plan_is_refused(tmp_path: Path) -> None:
    write_plan(draw_plan(hashes(4), seed=3), tmp_path)
    path = tmp_path / "plan.json"
    data = json.loads(path.read_text())
    name, value = data["requested"].popitem()
    data["still_trained"][name] = value
    path.write_text(json.dumps(data))
    with pytest.raises(UserError, match="edited after it was committed"):
        read_plan(path)


def written(path: Path, plan: AuditPlan) -> Path:
    path.write_text(json.dumps(plan.to_dict()))
    return path


def test_halves_that_the_seed_does_not_draw_are_refused(tmp_path: Path) -> None:
    """A hash over halves that were picked by hand is right all the same; the draw is what anybody can repeat."""
    plan = draw_plan(hashes(8), seed=3, clusters={f"{i}.png": i // 2 for i in range(8)})
    assert plan.together == tuple((f"{i}.png", f"{i + 1}.png") for i in range(0, 8, 2)) and plan.follows_its_seed()
    assert read_plan(written(tmp_path / "drawn.json", plan)) == plan
    swapped = replace(plan, requested=plan.still_trained, still_trained=plan.requested)
    with pytest.raises(UserError, match="its seed 3 draws, so they were chosen"):
        read_plan(written(tmp_path / "swapped.json", swapped))
    with pytest.raises(UserError, match="no readable audit plan"):
        read_plan(written(tmp_path / "twice.json", replace(plan, together=(("0.png", "1.png"), ("1.png", "2.png")))))


def test_an_older_plan_is_read_and_says_whether_its_seed_draws_it(tmp_path: Path) -> None:
    plan = replace(draw_plan(hashes(8), seed=3), together=None)
    assert plan.to_dict()["schema"] == 1
    assert read_plan(written(tmp_path / "drawn.json", plan)).follows_its_seed()
    chosen = replace(plan, requested=plan.still_trained, still_trained=plan.requested)
    assert not read_plan(written(tmp_path / "chosen.json", chosen)).follows_its_seed()


def test_copies_that_no_cluster_joins_are_drawn_together() -> None:
    """A picture of one colour looks like nothing, and is its copy all the same."""
    images = hashes(6) | {"copy.png": hashes(6)["0.png"]}
    for seed in range(6):
        plan = draw_plan(images, seed, clusters={name: i for i, name in enumerate(images)})
        assert plan.follows_its_seed() and ("copy.png" in plan.requested) == ("0.png" in plan.requested)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"requested": 3, "still_trained": {}, "seed": 0, "sha256": ""}'])
def test_a_file_that_is_no_plan_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "plan.json").write_text(content)
    with pytest.raises(UserError, match="no readable audit plan"):
        read_plan(tmp_path / "plan.json")
    with pytest.raises(UserError, match="no readable audit plan"):
        read_plan(tmp_path / "missing.json")


@pytest.fixture
def plan() -> AuditPlan:
    return draw_plan(hashes(6), seed=5)


def test_pictures_follow_the_plan_by_what_they_are_and_not_by_name(plan: AuditPlan) -> None:
    others = {Arm.STILL_TRAINED: plan.still_trained, Arm.NEVER_TRAINED: {"c": "c"}}
    check_plan(plan, {Arm.REQUESTED: {f"new-{name}": value for name, value in plan.requested.items()}, **others})
    with pytest.raises(UserError, match="'requested'"):
        check_plan(plan, {Arm.REQUESTED: {name: f"0{value[1:]}x" for name, value in plan.requested.items()}, **others})


def test_arms_that_depart_from_the_plan_are_named(plan: AuditPlan) -> None:
    lost = next(iter(plan.requested))
    fewer = {name: value for name, value in plan.requested.items() if name != lost}
    with pytest.raises(UserError, match=f"'requested' .*missing: {lost}; unplanned: none"):
        check_plan(plan, {Arm.REQUESTED: fewer, Arm.STILL_TRAINED: plan.still_trained})
    with pytest.raises(UserError, match=f"'still_trained' .*unplanned: {lost}"):
        more = plan.still_trained | {lost: plan.requested[lost]}
        check_plan(plan, {Arm.REQUESTED: plan.requested, Arm.STILL_TRAINED: more})
    with pytest.raises(UserError, match=f"'never_trained' holds images of the plan: {lost}"):
        controls = {Arm.NEVER_TRAINED: {lost: plan.requested[lost]}}
        check_plan(plan, {Arm.REQUESTED: plan.requested, Arm.STILL_TRAINED: plan.still_trained, **controls})


def test_photographs_are_not_all_held_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is let go once its thumbnails are made: thousands of photographs would not fit."""
    opened: list[weakref.ref] = []
    alive: list[int] = []
    original = Picture.open

    def watched(picture: Picture):
        image = original(picture)
        opened.append(weakref.ref(image))
        alive.append(sum(ref() is not None for ref in opened))
        return image

    monkeypatch.setattr(Picture, "open", watched)
    plan_audit(folder_of(tmp_path / "mine", 12), tmp_path / "plan")
    assert len(alive) >= 12 and max(alive) <= 3


def test_no_name_in_a_request_is_a_formula(tmp_path):
    plan = draw_plan({"=cmd|x!A0.png": "a" * 64, "b.png": "b" * 64}, seed=1)
    with pytest.raises(UserError, match="A spreadsheet would take =cmd"):
        write_plan(plan, tmp_path / "plan")
    assert not (tmp_path / "plan").exists()


@pytest.mark.parametrize("write", ["plan", "record"])
def test_a_folder_at_work_takes_no_plan_and_no_recording(write: str, tmp_path: Path) -> None:
    mine, target = folder_of(tmp_path / "mine", 4), tmp_path / "out"
    with owned(target, "An audit"), pytest.raises(UserError, match="is still at work in"):
        if write == "plan":
            plan_audit(mine, target)
        else:
            record_embeddings("http://127.0.0.1:1/embed", mine, target / "before.safetensors")
    assert not target.exists()
