import itertools
import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from audit.conftest import folder_of
from safetensors.numpy import save_file as save_numpy
from safetensors.torch import save_file as save_torch

from hf_unlearn.audit.embedding_files import is_precomputed, read_embeddings, save_embeddings
from hf_unlearn.audit.embeddings import Embeddings, directions
from hf_unlearn.audit.pictures import list_pictures
from hf_unlearn.audit.settings import AuditSettings
from hf_unlearn.errors import UserError
from hf_unlearn.metrics.alignment_matrices import unit_rows

RNG = np.random.default_rng(0)
N, K, D = 4, 3, 5


def cosine(x, y):
    return x @ y / np.linalg.norm(x) / np.linalg.norm(y)


@pytest.fixture
def pictures(tmp_path):
    return list_pictures(folder_of(tmp_path / "mine", N))


@pytest.fixture
def views():
    return np.random.default_rng(1).normal(size=(N, K, D))


NO_CAPTIONS = ((),) * N


def test_view_alignment_is_the_mean_over_pairs_of_distinct_views(views):
    loop = [np.mean([cosine(v[k], v[m]) for k, m in itertools.combinations(range(K), 2)]) for v in views]
    np.testing.assert_allclose(Embeddings(views).alignments(), loop)


def test_view_alignment_matrix_averages_pairs_of_distinct_views(views):
    pairs = [(k, m) for k in range(K) for m in range(K) if k != m]
    loop = [[np.mean([cosine(a[k], b[m]) for k, m in pairs]) for b in views] for a in views]
    embeddings = Embeddings(views)
    np.testing.assert_allclose(embeddings.alignment_matrix(), loop)
    np.testing.assert_allclose(np.diagonal(embeddings.alignment_matrix()), embeddings.alignments())
    np.testing.assert_allclose(embeddings.alignment_matrix([2, 0]), np.array(loop)[np.ix_([2, 0], [2, 0])])


def test_caption_alignment_is_the_mean_over_views_and_captions(views):
    texts, owner = RNG.normal(size=(6, D)), np.array([0, 1, 1, 2, 3, 3])
    loop = [[np.mean([cosine(v, t) for v in a for t in texts[owner == j]]) for j in range(N)] for a in views]
    embeddings = Embeddings(views, texts, owner)
    np.testing.assert_allclose(embeddings.alignment_matrix(), loop)
    np.testing.assert_allclose(embeddings.alignments(), np.diagonal(loop))


def test_an_image_and_its_caption_may_be_the_two_views():
    pairs = RNG.normal(size=(N, 2, D))
    np.testing.assert_allclose(Embeddings(pairs).alignments(), [cosine(*pair) for pair in pairs])


def test_one_view_alone_has_nothing_to_align_with(views):
    with pytest.raises(UserError, match="nothing to align with"):
        Embeddings(views[:, :1]).alignments()


def test_the_picture_as_it_is_weighs_as_much_as_all_its_crops(views):
    texts, owner = RNG.normal(size=(N, D)), np.arange(N)
    unit, captions = unit_rows(views), unit_rows(texts)
    cosines = (unit * captions[:, None]).sum(-1)
    plain = Embeddings(views, texts, owner)
    np.testing.assert_allclose(plain.alignments(), cosines.mean(1))
    first = replace(plain, original_first=True)
    np.testing.assert_allclose(first.alignments(), (cosines[:, 0] + cosines[:, 1:].mean(1)) / 2)
    np.testing.assert_allclose(np.diag(first.alignment_matrix()), first.alignments())


def test_taking_and_halving_keep_what_belongs_together(views):
    texts, owner = RNG.normal(size=(N + 1, D)), np.array([0, 0, *range(1, N)])
    whole = Embeddings(views, texts, owner, held_back=views, original_first=True)
    some = whole.take([2, 0])
    np.testing.assert_allclose(some.alignments(), whole.alignments()[[2, 0]])
    assert some.text_owner.tolist() == [0, 1, 1]
    assert whole.half(np.random.default_rng(0)) is None  # three views beside the picture are too few to halve
    many = Embeddings(np.tile(views, (1, 3, 1)), held_back=np.tile(views, (1, 3, 1)), original_first=True)
    half = many.half(np.random.default_rng(0))
    assert half.images.shape[1] == 1 + (3 * K - 1) // 2 and (half.images[:, 0] == views[:, 0]).all()


def test_faults_name_the_pictures(views):
    names = ["a", "b", "c", "d"]
    assert Embeddings(views).faults("The model", names) == []
    broken = views.copy()
    broken[1, 2] = 0
    broken[3, 0, 0] = np.nan
    texts = RNG.normal(size=(N, D))
    texts[0] = np.inf
    assert Embeddings(broken, texts, np.arange(N)).faults("The model", names) == [
        "The model gives embeddings that are not finite for 1 of 4 pictures (d).",
        "The model gives zero embeddings for 1 of 4 pictures (b).",
        "The model gives zero or non-finite embeddings for captions of 1 of 4 pictures (a).",
    ]
    assert np.isfinite(Embeddings(broken).alignments()).tolist() == [True, False, True, False]


@pytest.mark.parametrize("exponent", [-700, 660])
def test_embeddings_of_any_magnitude_have_a_direction(views, exponent):
    """Their squares are beyond what a double holds; a power of two leaves every digit."""
    extreme = np.ldexp(views, exponent)
    texts, owner = RNG.normal(size=(N, D)), np.arange(N)
    assert np.array_equal(Embeddings(extreme).alignments(), Embeddings(views).alignments())
    captioned = Embeddings(views, np.ldexp(texts, exponent), owner)
    assert np.array_equal(captioned.alignments(), Embeddings(views, texts, owner).alignments())
    assert np.array_equal(directions(views), unit_rows(views))


def test_zero_and_broken_embeddings_have_no_direction():
    rows = [[0.0, 0.0], [np.inf, 1.0], [np.nan, 1.0], [-1e300, 0.0], [5e-324, 0.0]]
    np.testing.assert_array_equal(directions(rows)[3:], [[-1.0, 0.0], [1.0, 0.0]])
    assert np.isnan(directions(rows)[:3]).all()


def test_collapse_is_seen_through_broken_pictures(views):
    assert Embeddings(views).collapse("The model") is None
    same = np.broadcast_to(RNG.normal(size=D), (N, K, D)).copy()
    same[0] = np.nan
    assert "collapsed" in Embeddings(same.astype(np.float32)).collapse("The model")
    assert Embeddings(same[:1]).collapse("The model") is None


def test_npy_of_both_shapes(tmp_path, pictures, views):
    np.save(tmp_path / "x.npy", views.astype(np.float32))
    got = read_embeddings(tmp_path / "x.npy", pictures, NO_CAPTIONS)
    np.testing.assert_allclose(got.images, views, rtol=1e-6)
    np.save(tmp_path / "y.npy", views[:, 0])
    assert read_embeddings(tmp_path / "y.npy", pictures, NO_CAPTIONS).images.shape == (N, 1, D)


def test_safetensors_with_captions_in_bfloat16(tmp_path, pictures, views):
    texts = torch.tensor(RNG.normal(size=(5, D))).bfloat16()
    save_torch({"images": torch.tensor(views).bfloat16(), "texts": texts}, tmp_path / "x.safetensors")
    captions = (("a",), ("b", "c"), ("d",), ("e",))
    got = read_embeddings(tmp_path / "x.safetensors", pictures, captions)
    assert got.text_owner.tolist() == [0, 1, 1, 2, 3]
    np.testing.assert_allclose(got.texts, texts.double().numpy())


def test_parquet_rows_in_any_order(tmp_path, pictures, views):
    rows = [
        {"image": p.name, "kind": kind, "embedding": vector.tolist()}
        for i, p in enumerate(pictures)
        for kind, vectors in (("image", views[i]), ("text", views[i][:1]), ("held_back", -views[i]))
        for vector in vectors
    ]
    order = sorted(range(len(rows)), key=lambda i: (rows[i]["kind"] == "image", -(i // 7), i))
    pq.write_table(pa.Table.from_pylist([rows[i] for i in order]), tmp_path / "x.parquet")
    got = read_embeddings(tmp_path / "x.parquet", pictures, NO_CAPTIONS)
    np.testing.assert_allclose(got.images, views)
    np.testing.assert_allclose(got.held_back, -views)
    np.testing.assert_allclose(got.texts, views[:, 0])
    assert got.text_owner.tolist() == [0, 1, 2, 3]


def test_a_recording_knows_its_pictures_in_any_order(tmp_path, pictures, views):
    texts, owner = RNG.normal(size=(5, D)), np.array([0, 1, 1, 2, 3])
    embeddings = Embeddings(views, texts, owner, held_back=-views, repeats=views[:, 0], source={"name": "m"})
    path = save_embeddings(embeddings, pictures, tmp_path / "rec" / "x.safetensors", {"seed": 3})
    assert list(path.parent.iterdir()) == [path]
    got = read_embeddings(path, [pictures[2], pictures[1]], (("t",), ("u", "v")))
    np.testing.assert_array_equal(got.images, views[[2, 1]])
    np.testing.assert_array_equal(got.held_back, -views[[2, 1]])
    np.testing.assert_array_equal(got.texts, texts[[3, 1, 2]])
    assert got.text_owner.tolist() == [0, 1, 1]
    assert got.source["name"] == "m" and got.source["drawn"] == {"seed": 3} and got.source["kind"] == "precomputed"
    stranger = list_pictures(folder_of(tmp_path / "other", 1, 50))
    with pytest.raises(UserError, match=r"no record of picture-50\.png"):
        read_embeddings(path, stranger, ((),))


def write(path, content):
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda p: p / "gone.npy", "does not exist"),
        (lambda p: write(p / "x.npy", b"junk"), "no array"),
        (lambda p: write(p / "x.safetensors", b"junk"), "no whole safetensors file"),
        (lambda p: write(p / "x.parquet", b"junk"), "no parquet file"),
        (lambda p: (np.save(p / "x.npy", np.ones((3, 2))), p / "x.npy")[1], "3 pictures but 4 are audited"),
        (lambda p: (np.save(p / "x.npy", np.ones((4, 2), int)), p / "x.npy")[1], "floating-point"),
        (lambda p: (np.save(p / "x.npy", np.ones(4)), p / "x.npy")[1], r"\[n, k, d\]"),
        (
            lambda p: (np.save(p / "x.npy", np.array([{}] * 4), allow_pickle=True), p / "x.npy")[1],
            "no array",  # a pickle is never opened
        ),
        (lambda p: (save_numpy({"x": np.ones(3)}, p / "x.safetensors"), p / "x.safetensors")[1], "needs 'images'"),
        (
            lambda p: (
                save_numpy({"images": np.ones((4, 2)), "texts": np.ones((3, 2))}, p / "x.safetensors"),
                p / "x.safetensors",
            )[1],
            "do not match the 4 captions",
        ),
        (
            lambda p: (pq.write_table(pa.table({"image": ["a"]}), p / "x.parquet"), p / "x.parquet")[1],
            r"lacks the column \['embedding'\]",
        ),
        (
            lambda p: (
                pq.write_table(pa.table({"image": ["a"], "embedding": [[1.0]]}), p / "x.parquet"),
                p / "x.parquet",
            )[1],
            "not audited: a",
        ),
        (
            lambda p: (
                pq.write_table(pa.table({"image": ["picture-00.png"], "embedding": [[1.0]]}), p / "x.parquet"),
                p / "x.parquet",
            )[1],
            "equally many image rows",
        ),
    ],
)
def test_files_that_do_not_fit_are_named(tmp_path, pictures, make, words):
    with pytest.raises(UserError, match=words):
        read_embeddings(make(tmp_path), pictures, NO_CAPTIONS)


@pytest.mark.parametrize(
    ("part", "shape"),
    [
        ("texts", (N, D + 1)),
        ("held_back", (N, K, D + 1)),
        ("nudged", (N, 3, D + 1)),
        ("repeats", (N, D + 1)),
        ("repeats", (N,)),
        ("repeats", (N, K, D)),
    ],
)
def test_parts_of_another_width_or_form_are_named(part, shape, pictures, views, tmp_path):
    recorded = {"hf_unlearn": json.dumps(record(pictures=[picture.sha256 for picture in pictures]))}
    tensors = {"images": views, part: RNG.normal(size=shape)} | (
        {"text_owner": np.arange(4.0)} if part == "texts" else {}
    )
    save_numpy(tensors, tmp_path / "x.safetensors", recorded)
    words = rf"holds {part} of shape \[{', '.join(map(str, shape))}\] beside images of shape \[4, 3, 5\]"
    with pytest.raises(UserError, match=words):
        read_embeddings(tmp_path / "x.safetensors", pictures, NO_CAPTIONS)


def test_names_that_are_files_of_embeddings():
    assert is_precomputed("a/x.NPY") and is_precomputed("x.safetensors") and is_precomputed("x.parquet")
    assert not is_precomputed("org/model") and not is_precomputed("https://host/x.npy")


def test_metadata_is_plain_json(tmp_path, pictures, views):
    from safetensors import safe_open

    path = save_embeddings(Embeddings(views), pictures, tmp_path / "x.safetensors", {"seed": 0})
    with safe_open(path, "np") as file:
        told = json.loads(file.metadata()["hf_unlearn"])
    assert told["pictures"] == [picture.sha256 for picture in pictures]


def record(**fields):
    return {"pictures": ["x"] * N, "source": {}, "drawn": {}} | fields


@pytest.mark.parametrize(
    "recorded",
    [
        [1],
        {"pictures": []},
        record(pictures=[[1]] * N),
        record(source=[1]),
        record(drawn=[1]),
        record(drawn={"seed": "x"}),
        record(drawn={"count": 1.5}),
        record(captions=["a"]),
        record(pictures=["x"] * (N + 1)),
    ],
)
def test_a_record_in_a_file_that_is_none_is_refused(recorded, pictures, views, tmp_path):
    save_numpy({"images": views}, tmp_path / "x.safetensors", {"hf_unlearn": json.dumps(recorded)})
    with pytest.raises(UserError):
        read_embeddings(tmp_path / "x.safetensors", pictures, NO_CAPTIONS)


@pytest.mark.parametrize("drawn", [{"views": {"family": [1]}}, {"views": {"size": 10**9}}, {"count": 10**9}])
def test_what_a_recording_asks_for_is_bounded(drawn):
    with pytest.raises(UserError):
        AuditSettings().with_recorded({"drawn": drawn})


@pytest.mark.parametrize("source", [{"features": [1]}, {"processor_backend": 7}])
def test_what_a_recording_chose_is_one_of_the_choices(source):
    with pytest.raises(UserError):
        AuditSettings().with_recorded(source)


def test_embeddings_of_others_say_nothing_of_views():
    assert AuditSettings().with_recorded({"drawn": {"views": "precomputed", "count": 3}}).view_count == 3


@pytest.mark.parametrize(
    "columns",
    [
        {"image": [None, "stray", "0.png", "1.png"]},
        {"image": [["0.png"]] * N},
        {"kind": [None, "image", "image", "image"]},
        {"kind": [["image"]] * N},
    ],
)
def test_names_and_kinds_in_parquet_are_texts(columns, pictures, tmp_path):
    table = {"image": [picture.name for picture in pictures], "embedding": [[1.0, 2.0]] * N}
    pq.write_table(pa.table(table | columns), tmp_path / "x.parquet")
    with pytest.raises(UserError, match="no text"):
        read_embeddings(tmp_path / "x.parquet", pictures, NO_CAPTIONS)


def test_numbers_longer_than_doubles_become_doubles(pictures, views, tmp_path):
    np.save(tmp_path / "x.npy", views.astype(np.longdouble))
    assert read_embeddings(tmp_path / "x.npy", pictures, NO_CAPTIONS).images.dtype == np.float64
