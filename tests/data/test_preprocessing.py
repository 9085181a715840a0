import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, AutoTokenizer, BitImageProcessor

from hf_unlearn.data import preprocessing
from hf_unlearn.data.preprocessing import ImageTextPreprocessor, ImageViewPreprocessor
from hf_unlearn.data.views import VIEW_PRESETS, BatchedViews
from hf_unlearn.errors import UserError
from hf_unlearn.models.image_processor import image_processor_of

LENGTH = 8


@pytest.fixture(scope="module")
def processor(tiny_clip):
    return AutoProcessor.from_pretrained(tiny_clip)


@pytest.fixture(scope="module")
def pairs(processor, shapes):
    """Inputs, and the first 24 rows encoded: captions are one or two."""
    preprocessor = ImageTextPreprocessor(processor, LENGTH)
    return preprocessor, preprocessor.encode(shapes[:24])


@pytest.fixture(scope="module")
def pictures(shapes):
    preprocessor = ImageViewPreprocessor(image_processor_of(VIEW_PRESETS["light"]), VIEW_PRESETS["light"])
    return preprocessor, preprocessor.encode(shapes[:6])


def test_pixels_equal_the_processors_to_half_a_level(pairs, processor, shapes):
    preprocessor, encoded = pairs
    assert encoded["pixels"].dtype == torch.uint8
    wanted = processor.image_processor(shapes[:24]["image"], return_tensors="pt")["pixel_values"]
    level = 1 / 255 / min(processor.image_processor.image_std)
    torch.testing.assert_close(preprocessor.batch(encoded, None)["pixel_values"], wanted, atol=0.51 * level, rtol=0)


def test_tokens_equal_the_tokenizers(pairs, processor, shapes):
    preprocessor, encoded = pairs
    wanted = processor.tokenizer(
        [captions[0] for captions in shapes[:24]["captions"]],
        padding="max_length",
        truncation=True,
        max_length=LENGTH,
        return_tensors="pt",
    )
    batch = preprocessor.batch(encoded, None)
    assert batch.keys() == {"pixel_values", "input_ids", "attention_mask"}
    for name in ("input_ids", "attention_mask"):
        assert torch.equal(batch[name], wanted[name])


def test_training_draws_each_of_an_images_own_captions(pairs, shapes):
    preprocessor, encoded = pairs
    drawn = [set() for _ in range(24)]
    for seed in range(40):
        for row, tokens in enumerate(preprocessor.batch(encoded, seed)["input_ids"].tolist()):
            drawn[row].add(tuple(tokens))
    for row, captions in enumerate(shapes[:24]["captions"]):
        assert drawn[row] == {tuple(t) for t in preprocessor.tokenise(captions)["input_ids"].tolist()}


def test_draws_depend_on_the_seed_alone(pairs):
    preprocessor, encoded = pairs
    torch.manual_seed(0)
    first = preprocessor.batch(encoded, 5)
    torch.rand(3)
    again, other = preprocessor.batch(encoded, 5), preprocessor.batch(encoded, 6)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["input_ids"], other["input_ids"])


@pytest.mark.parametrize("probability", [0.0, 0.5, 1.0])
def test_pictures_are_mirrored_with_the_given_probability(processor, shapes, probability):
    preprocessor = ImageTextPreprocessor(processor, LENGTH, flip_probability=probability)
    encoded = preprocessor.encode(shapes.select([2] * 200)[:])
    encoded["pixels"] = (
        torch.arange(3 * 16 * 16).remainder(251).to(torch.uint8).view(1, 3, 16, 16).expand(200, -1, -1, -1)
    )
    plain = preprocessor.batch(encoded, None)["pixel_values"]
    drawn = preprocessor.batch(encoded, 0)["pixel_values"]
    mirrored = (drawn == plain.flip(-1)).flatten(1).all(1)
    assert (mirrored | (drawn == plain).flatten(1).all(1)).all()
    assert mirrored.float().mean() == pytest.approx(probability, abs=0.1)


@pytest.mark.parametrize("probability", [0.0, 1e-9])
def test_captions_are_drawn_alike_whether_pictures_may_be_mirrored_or_not(pairs, processor, probability):
    _, encoded = pairs
    batch = ImageTextPreprocessor(processor, LENGTH, flip_probability=probability).batch(encoded, 5)
    draws = torch.rand(2, 24, generator=torch.Generator().manual_seed(5))
    chosen = (draws[0] * encoded["caption_counts"]).long()
    assert torch.equal(batch["input_ids"], encoded["input_ids"][torch.arange(24), chosen].long())


def test_nothing_is_mirrored_at_no_probability(pairs, monkeypatch):
    preprocessor, encoded = pairs
    monkeypatch.setattr(torch.Tensor, "flip", None)
    pictures = [preprocessor.batch(encoded, seed)["pixel_values"] for seed in (5, None)]
    assert torch.equal(*pictures)


def test_any_picture_mode_and_size_becomes_rgb_at_the_models_size(processor):
    preprocessor = ImageTextPreprocessor(processor, LENGTH)
    images = [Image.new("L", (50, 30), 128), Image.new("RGBA", (5, 9), (255, 0, 0, 255)), Image.new("P", (16, 16))]
    encoded = preprocessor.encode({"image": images, "captions": [["a"], ["b"], ["c"]]})
    assert encoded["pixels"].shape == (3, 3, 16, 16)
    assert encoded["pixels"][0].unique().tolist() == [128]


@pytest.mark.parametrize(
    ("image", "fault"),
    [
        (None, "there is no image; give it one, or leave the row out"),
        (b"bytes", r'it holds bytes, no picture; use cast_column\("image", datasets.Image\(\)\)'),
        ({"file": "a.png"}, "it holds dict, no picture"),
        ({"bytes": b"GIF89a", "path": None}, "it cannot be read .*; mend it, or leave the row out"),
        (Image.new("F", (4, 4)), "it cannot be read .*mode F.*; mend it, or leave the row out"),
        (
            Image.new("RGB", (32, 16)),
            r"CLIPImageProcessor\w* makes its height and width \(16, 32\), .* \(16, 16\); set",
        ),
    ],
)
def test_what_is_no_picture_of_the_right_size_is_told_with_its_row(processor, image, fault, monkeypatch):
    monkeypatch.setattr(processor.image_processor, "do_center_crop", False)
    preprocessor = ImageTextPreprocessor(processor, LENGTH)
    with pytest.raises(UserError, match=f"Column 'image' of row 1: {fault}"):
        preprocessor.encode({"image": [Image.new("RGB", (16, 16)), image], "captions": ["a", "b"]})


def test_a_tokenizer_alone_cannot_prepare_pairs(tiny_clip):
    with pytest.raises(UserError, match="cannot prepare image-text pairs; pass the processor saved with the model"):
        ImageTextPreprocessor(AutoTokenizer.from_pretrained(tiny_clip), LENGTH)


def test_two_views_of_each_picture_at_the_processors_size(pictures):
    preprocessor, encoded = pictures
    views = preprocessor.batch(encoded, 3)["pixel_values"]
    assert views.shape == (6, 2, 3, 32, 32)
    assert not torch.equal(views[:, 0], views[:, 1])
    assert torch.equal(views, preprocessor.views(encoded["pixels"], seed=3))


def test_views_are_as_large_as_the_pictures_a_processor_crops(shapes):
    # As DINOv2's: resized to more than is then cut out.
    processor = BitImageProcessor(size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32})
    preprocessor = ImageViewPreprocessor(processor, VIEW_PRESETS["light"])
    encoded = preprocessor.encode(shapes[:3])
    wanted = processor(shapes[:3]["image"], return_tensors="pt")["pixel_values"]
    assert preprocessor.batch(encoded, 0)["pixel_values"].shape == (3, 2, *wanted.shape[1:]) == (3, 2, 3, 32, 32)
    torch.testing.assert_close(preprocessor.batch(encoded, None)["pixel_values"][:, 0], wanted)


def test_without_a_seed_both_views_are_the_plain_picture(pictures):
    preprocessor, encoded = pictures
    views = preprocessor.batch(encoded, None)["pixel_values"]
    assert torch.equal(views[:, 0], views[:, 1])
    plain = BatchedViews(VIEW_PRESETS["light"]).plain(encoded["pixels"])
    torch.testing.assert_close(views[:, 0], plain)


def test_large_pictures_are_decoded_and_resized_some_at_a_time(pictures, shapes, monkeypatch):
    preprocessor, encoded = pictures
    together, held = [], []
    whole = preprocessing.resize

    def resize(processor, decoded):
        together.append(len(decoded))
        held.append(sum(picture.width * picture.height for picture in decoded))
        return whole(processor, decoded)

    monkeypatch.setattr(preprocessing, "resize", resize)
    monkeypatch.setattr(preprocessing, "PIXELS_AT_ONCE", 2 * 20 * 20)
    assert torch.equal(preprocessor.encode(shapes[:6])["pixels"], encoded["pixels"])
    assert together == [2, 2, 2] and max(held) <= 800


def test_a_thin_picture_of_a_stream_is_refused_too(pictures):
    with pytest.raises(UserError, match="1 x 20000 pixels, and one side"):
        pictures[0].encode({"image": [Image.new("L", (1, 20_000))]})
