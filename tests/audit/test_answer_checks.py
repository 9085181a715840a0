from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from audit.conftest import draw
from audit_answers import AT_20, PARTS, WIDTH, Answers, answers, edited, rotation
from audit_attacks import ATTACKS, CAPTION_ATTACKS
from audit_simulation import C, R, U, World
from PIL import Image as PILImage

from hf_unlearn.audit.answer_checks import change, noise, suspicions
from hf_unlearn.audit.answer_jumps import checkable, units
from hf_unlearn.audit.embeddings import Embeddings
from hf_unlearn.audit.encoders import embed_pictures
from hf_unlearn.audit.pictures import list_pictures
from hf_unlearn.audit.transforms import HeldBackViews, TrainingViews
from hf_unlearn.records.audit_result import Arm

RNG = np.random.default_rng(3)
VIEWS = RNG.normal(size=(5, 4, 32))


def found(world: Answers, after: Embeddings) -> tuple[str, ...]:
    u, o = np.flatnonzero(world.requested), np.flatnonzero(~world.requested)
    return suspicions(world.before, after, u.tolist(), o.tolist(), np.arange(len(world.arms)))


@pytest.fixture(scope="module")
def world() -> Answers:
    return answers(AT_20, np.random.default_rng(0))


@pytest.mark.parametrize(
    ("serve", "most"),
    [
        (lambda x: x.copy(), 0),
        (lambda x: 1.001 * x, 1e-12),
        (lambda x: x @ np.linalg.qr(np.random.default_rng(0).normal(size=(32, 32)))[0], 1e-12),
        (lambda x: np.concatenate([x, np.zeros((*x.shape[:-1], 1))], -1), 1e-12),
        (lambda x: x.astype(np.float16).astype(float), 1e-3),
    ],
    ids=["the same", "scaled", "rotated", "a zero appended", "half precision"],
)
def test_no_way_of_serving_the_same_model_is_a_change(serve, most: float) -> None:
    assert change(Embeddings(VIEWS), Embeddings(serve(VIEWS))).max() <= most


def test_a_change_is_the_root_mean_square_of_cosines() -> None:
    after = VIEWS.copy()
    after[2] = RNG.normal(size=after[2].shape)
    moved = change(Embeddings(VIEWS), Embeddings(after))

    def cosine(x: np.ndarray, y: np.ndarray) -> float:
        return float(x @ y / np.linalg.norm(x) / np.linalg.norm(y))

    for i in range(5):
        squares = [
            (cosine(after[i, s], after[j, (s + 1) % 4]) - cosine(VIEWS[i, s], VIEWS[j, (s + 1) % 4])) ** 2
            for s in range(4)
            for j in range(5)
        ]
        assert moved[i] == pytest.approx(np.sqrt(np.mean(squares)))
    assert moved[2] == moved.max()


def test_captions_and_missing_answers_count() -> None:
    texts, owner = RNG.normal(size=(5, 32)), np.arange(5)
    other = texts.copy()
    other[1] *= -1
    moved = change(Embeddings(VIEWS, texts, owner), Embeddings(VIEWS, other, owner))
    assert (moved > 0).tolist() == [False, True, False, False, False]
    broken = VIEWS.copy()
    broken[3, 0, 0] = np.nan
    assert np.isnan(change(Embeddings(VIEWS), Embeddings(broken))).tolist() == [False, False, False, True, False]


def test_noise_is_the_change_between_two_models_as_unsteady() -> None:
    assert noise(Embeddings(VIEWS)) is None
    assert noise(Embeddings(VIEWS, repeats=VIEWS[:, 0])).tolist() == [0] * 5
    many = RNG.normal(size=(60, 1, 32))
    asked = [many + 0.05 * RNG.normal(size=many.shape) for _ in range(3)]
    first, second = Embeddings(asked[0]), Embeddings(asked[1])
    expected = change(first, second).mean()
    assert noise(Embeddings(asked[0], repeats=asked[2][:, 0])).mean() == pytest.approx(expected, rel=0.1)


FAKES = (
    ("noise on answers about requested pictures", "Only the answers about the requested pictures changed"),
    ("the same, all outputs rotated", "Only the answers about the requested pictures changed"),
    ("the same, all outputs in half precision", "Only the answers about the requested pictures changed"),
    ("a stranger's embedding, the model drifts", "show less of what is on them"),
    ("the embedding of an own control, the model drifts", "the answer of a different picture"),
    ("outputs rounded to 0.2, the model drifts", "are coarse"),
    ("noise on requested pictures, the model drifts", "jump"),
    ("noise kept for alike pictures, the model drifts", "small changes hardly move"),
    ("pictures true, their views noisy, the model drifts", "small changes hardly move"),
    ("all others lifted to the requested level", "about all pictures but the requested ones changed"),
)


@pytest.mark.parametrize(("attack", "words"), FAKES)
def test_each_fake_is_told_in_plain_words(world: Answers, attack: str, words: str) -> None:
    assert any(words in sentence for sentence in found(world, ATTACKS[attack](world)))


def without(side: Embeddings, rows: object) -> Embeddings:
    """The same answers, but for one view of some pictures."""
    images = side.images.copy()
    images[rows, 1] = np.nan
    return replace(side, images=images)


@pytest.mark.parametrize(("attack", "words"), FAKES)
def test_unanswered_views_hide_no_fake(world: Answers, attack: str, words: str) -> None:
    """Of one picture on either side, or of every requested picture now."""
    fake, other = ATTACKS[attack](world), np.flatnonzero(~world.requested)[0]
    for rows in (0, other, world.requested):
        assert any(words in sentence for sentence in found(world, without(fake, rows))), rows
    for row in (0, other):
        asked = replace(world, before=without(world.before, row))
        assert any(words in sentence for sentence in found(asked, fake)), row


@pytest.mark.parametrize("row", [0, 20])
@pytest.mark.parametrize("served", ["before", "after"])
def test_requested_pictures_that_the_old_model_answers_are_told_with_an_unanswered_view(
    world: Answers, served: str, row: int
) -> None:
    """The cosines among them stay, beside how far they differed before."""
    kept = {name: getattr(world.drifted, name).copy() for name in PARTS}
    for name in PARTS:
        kept[name][world.requested] = getattr(world.before, name)[world.requested]
    before, after = world.before, Embeddings(**kept)
    before, after = (without(before, row), after) if served == "before" else (before, without(after, row))
    assert any("all pictures but the requested ones" in told for told in found(replace(world, before=before), after))


@pytest.mark.parametrize("row", [0, 20])
def test_an_unanswered_view_raises_no_suspicion(world: Answers, row: int) -> None:
    assert found(world, without(world.drifted, row)) == ()
    assert found(replace(world, before=without(world.before, row)), world.drifted) == ()


class Projection:
    """An encoder of pixels, of which a text is the name of a picture."""

    deterministic = True

    def __init__(self, pictures: dict[str, np.ndarray], turn: np.ndarray) -> None:
        self.pictures, self.turn = pictures, turn

    def embed_images(self, views: np.ndarray) -> np.ndarray:
        return (views.reshape(len(views), -1) / 255 - 0.5) @ self.turn

    def embed_texts(self, texts: list[str]) -> np.ndarray:
        return self.embed_images(np.stack([self.pictures[text] for text in texts]))

    def describe(self) -> dict[str, object]:
        return {}


@pytest.mark.parametrize("others", [12, 0])
def test_decoys_which_have_no_captions_make_no_honest_model_suspect(tmp_path: Path, others: int) -> None:
    """Requested pictures of one kind differ less than others, and what varied among others is known without decoys."""
    rng = np.random.default_rng(1)
    kind = np.array(draw(0).resize((8, 8))).astype(float)
    drawn = [np.clip(kind + rng.normal(0, 8, kind.shape), 0, 255) for _ in range(10)]
    drawn += [np.array(draw(10 + number).resize((8, 8))) for number in range(others + 12)]
    for number, pixels in enumerate(drawn):
        PILImage.fromarray(pixels.astype(np.uint8)).save(tmp_path / f"{number:02}.png")
    pictures = list_pictures(tmp_path)
    captions = [(picture.name,) for picture in pictures[: 10 + others]] + [()] * 12
    texts = {picture.name: np.array(picture.open()) for picture in pictures}
    first = rng.normal(size=(192, 32)) / 14
    turns = first, first @ (np.eye(32) + 0.1 * rng.normal(size=(32, 32)))
    views = TrainingViews("caption", 8), HeldBackViews(8)
    before, after = (
        embed_pictures(Projection(texts, turn), pictures, captions, *views, seed=0, count=4) for turn in turns
    )
    rows = np.arange(len(pictures))
    assert suspicions(before, after, rows[:10].tolist(), rows[10:].tolist(), rows) == ()


@pytest.mark.parametrize("after", ["honest", "drifted", "before"])
def test_honest_answers_raise_no_suspicion(world: Answers, after: str) -> None:
    served = getattr(world, after)
    assert found(world, served) == ()
    turn = rotation(world.rng)
    turned = edited(served, np.ones(len(world.arms), bool), lambda values: 2 * values @ turn)
    assert turned.images.shape[-1] == WIDTH and found(world, turned) == ()


def test_strange_captions_are_told_from_honest_ones() -> None:
    world = answers(AT_20, np.random.default_rng(0), captions=True)
    assert found(world, world.honest) == ()
    told = found(world, CAPTION_ATTACKS["captions: an own control's"](world))
    assert any("Only the answers about the requested pictures changed" in sentence for sentence in told)


@pytest.mark.parametrize("sizes", [{U: 20, R: 60, C: 4}, {U: 60, R: 60, C: 8}, {U: 20, R: 20}], ids=str)
def test_pictures_that_were_removed_are_not_suspected_beside_those_that_stay(sizes: dict[Arm, int]) -> None:
    """They stand lower, so that less of a single answer about them is content, also beside few controls."""
    for number in range(3):
        world = answers(World(sizes, gap=0.3, removed=1), np.random.default_rng([5, number]))
        assert found(world, world.honest) == ()


def test_copies_of_one_picture_count_once(world: Answers) -> None:
    """Twenty copies of a picture whose answers jump are one jump, which chance gives too."""
    rows = [0] * 20 + np.flatnonzero(~world.requested).tolist()
    after = ATTACKS["noise on requested pictures, the model drifts"](world).take(rows)
    clusters = np.array([0] * 20 + list(range(1, len(rows) - 19)))
    asked = world.before.take(rows), after, range(20), range(20, len(rows))
    assert not any("jump" in sentence for sentence in suspicions(*asked, clusters))
    assert any("jump" in sentence for sentence in suspicions(*asked, np.arange(len(rows))))


@pytest.mark.parametrize(
    ("requested", "others", "enough"), [(1, 80, False), (2, 40, True), (20, 2, False), (20, 3, True)]
)
def test_whether_enough_is_compared_to_notice_a_filter(requested: int, others: int, enough: bool) -> None:
    everyone = range(requested + others)
    compared = units(everyone[:requested], everyone[requested:], np.arange(len(everyone)))
    assert checkable(compared) == enough
    assert not checkable(units(everyone[:requested], everyone[requested:], np.zeros(len(everyone), np.int64)))


def test_few_pictures_raise_no_suspicion() -> None:
    few = Embeddings(VIEWS[:2])
    assert suspicions(few, Embeddings(RNG.normal(size=VIEWS[:2].shape)), [0, 1], [], np.arange(2)) == ()


def test_answers_that_fall_together_for_all_kinds_of_pictures_are_no_suspicion(world: Answers) -> None:
    """A new model takes some pictures for one; it is a suspicion where requested ones alone get another's answer."""
    together = {"requested alone": (0, 1, 2), "all kinds": (0, 20, 22, 24, 40, 42, 44)}
    for kind, rows in together.items():
        parts = {name: getattr(world.honest, name).copy() for name in PARTS}
        for row in rows:
            for array in parts.values():
                array[row] = array[row + 1] if row else array[5]
        shared = [sentence for sentence in found(world, Embeddings(**parts)) if "answer of a different" in sentence]
        assert bool(shared) == (kind == "requested alone"), kind
