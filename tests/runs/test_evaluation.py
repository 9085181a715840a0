"""What an evaluation does with labels, captions and rows that are not as its own data has them."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Value

from hf_unlearn.data.config import DataConfig
from hf_unlearn.data.encoded import EncodedSplit
from hf_unlearn.data.preprocessing import ImageTextPreprocessor
from hf_unlearn.errors import UserError
from hf_unlearn.models.loading import load_encoder
from hf_unlearn.runs.class_labels import ClassLabels, ZeroShotTask, class_labels
from hf_unlearn.runs.evaluation import ImageTextEvaluator, ImageViewEvaluator, few_notes
from hf_unlearn.runs.run_arguments import RunArguments
from hf_unlearn.runs.tuning import ties
from hf_unlearn.training.rows import make_preprocessor

NAMES = ("retain", "unlearn", "validation", "test")


def labelled(*columns, kinds=None, column="label"):
    """Four splits with these labels."""
    kinds = kinds or [ClassLabel(names=["cat", "dog"])] * len(columns)
    return DatasetDict(
        {
            name: Dataset.from_dict({column: values}).cast_column(column, kind)
            for name, values, kind in zip(NAMES, columns, kinds, strict=True)
        }
    )


def test_classes_are_those_of_the_rows():
    labels = class_labels(labelled([0, 1], [1], [0], [1, 0]))
    assert {name: list(values) for name, values in labels.of.items()} == {
        "retain": [0, 1], "unlearn": [1], "validation": [0], "test": [1, 0],
    }  # fmt: skip


def test_class_names_in_another_order_in_one_split_are_mapped_by_name():
    animals, turned = ClassLabel(names=["cat", "dog", "eel"]), ClassLabel(names=["eel", "cat", "dog"])
    labels = class_labels(labelled([0, 1, 2], [0], [1], [0, 1, 2], kinds=[animals, animals, animals, turned])).of
    assert list(labels["test"]) == [2, 0, 1] and list(labels["retain"]) == [0, 1, 2]


def test_splits_without_a_class_in_common_are_refused():
    kinds = [ClassLabel(names=["cat", "dog"])] * 3 + [ClassLabel(names=["0", "1"])]
    with pytest.raises(UserError, match="classes cat, dog in retain and 0, 1 in test, none of them the same"):
        class_labels(labelled([0], [0], [0], [1], kinds=kinds))


LEFT_OUT = {
    "no column": (labelled([0], [0], [0], [0], column="kind"), "No label column in the data"),
    "an unlabelled test": (labelled([0], [0], [0], [-1, -1]), "rows without a class (2 of 2 in test)"),
    "a missing class": (labelled([0], [0, None], [0], [1]), "rows without a class (1 of 2 in unlearn)"),
    "text": (
        labelled(["a"], ["a"], ["a"], ["b"], kinds=[Value("string")] * 4, column="category"),
        "string, no classes",
    ),
    "numbers": (
        labelled([0], [0], [0], [0], kinds=[Value("int64")] * 4),
        "'label' of retain, unlearn, validation, test",
    ),
    "one split without": (
        DatasetDict({**labelled([0], [0], [0], [0]), "test": Dataset.from_dict({"id": ["a"]})}),
        "'label' is missing in test",
    ),
}


@pytest.mark.parametrize("case", LEFT_OUT)
def test_without_usable_classes_the_probe_is_left_out_with_a_sentence(case):
    splits, told = LEFT_OUT[case]
    labels = class_labels(splits)
    assert labels.of is None and told in labels.reason
    evaluator = ImageViewEvaluator({name: [0] for name in NAMES}, SimpleNamespace(), labels)
    assert evaluator.gap_keys == ("emia",)
    left_out, few = evaluator.notes
    assert left_out == f"The linear probe's metrics (RA, TA, UA, CMIA) are left out. {labels.reason}"
    assert "is read off few samples (unlearn 1, validation 1)" in few and "Its interval is too narrow" in few


@pytest.mark.parametrize(("unlearn", "told"), [(20, None), (19, False), (5, False), (4, True)])
def test_few_samples_are_told_of_and_very_few_twice(unlearn, told):
    notes = few_notes({"unlearn": range(unlearn), "validation": range(30)})
    assert len(notes) == (told is not None)
    assert all(f"few samples (unlearn {unlearn}):" in note and ("too narrow" in note) is told for note in notes)


def test_a_text_category_beside_a_label_does_not_matter():
    splits = labelled([0], [1], [0], [1])
    splits = DatasetDict({name: rows.add_column("category", ["x"] * len(rows)) for name, rows in splits.items()})
    assert class_labels(splits).of is not None


def test_a_subsample_of_cmia_is_a_note():
    splits = {"retain": range(6_000), "unlearn": range(20), "validation": range(20), "test": range(5_001)}
    (note,) = ImageViewEvaluator(splits, SimpleNamespace(), ClassLabels({"retain": np.zeros(1)})).notes
    assert "5,000 of 6,000 members and 5,000 of 5,001 non-members" in note


def test_without_a_probe_the_retain_rows_attacked_are_a_draw_of_all():
    splits = {"retain": range(1_000), "unlearn": range(9), "validation": range(9), "test": range(100)}
    rows = ImageViewEvaluator(splits, SimpleNamespace())._attacked()
    assert rows == sorted(set(rows)) and len(rows) == 100
    assert np.bincount(np.array(rows) // 100, minlength=10).min() >= 3, "some of every hundred, sorted as they may be"


def test_captions_that_read_the_same_are_hits_of_each_other(tiny_clip, shapes):
    model, processor = load_encoder(str(tiny_clip))
    one_text = shapes.select(range(8)).map(lambda _: {"captions": ["a red circle"]})

    def recalls(rows):
        preprocessor = ImageTextPreprocessor(processor, 16)
        split = EncodedSplit(rows, preprocessor)
        return ImageTextEvaluator(dict.fromkeys(NAMES, split), preprocessor).evaluate(model)

    found = recalls(one_text)
    assert found.metrics["recall_at_1_image_to_text"] == found.metrics["recall_at_1_text_to_image"] == 100
    assert found.evidence.recalls == pytest.approx(np.full(8, 100.0))
    mixed = recalls(shapes.select(range(30)))
    assert np.mean(mixed.evidence.recalls) != 100 and len(mixed.evidence.retain) == 30


def test_the_spread_of_embeddings_is_that_of_held_out_pictures(tiny_clip, shapes):
    model, processor = load_encoder(str(tiny_clip))
    preprocessor = ImageTextPreprocessor(processor, 16)
    rows = {"retain": range(20), "unlearn": [20], "validation": range(21, 40), "test": range(40, 50)}
    splits = {name: EncodedSplit(shapes.select(places), preprocessor) for name, places in rows.items()}
    pixels = preprocessor.batch(splits["validation"].rows(range(19)), None)["pixel_values"]
    with torch.no_grad():
        x = model.get_image_features(pixels).pooler_output.double().numpy()
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    spread = np.square(x - x.mean(0)).sum(1).mean()
    assert ImageTextEvaluator(splits, preprocessor).evaluate(model).spread == pytest.approx(spread, rel=1e-4)


def test_trials_within_the_interval_of_the_best_are_said_to_be_tied():
    best = {"method": "npo", "setting": {"beta": 0.1}, "estimated_gap": 3.0, "low_estimated_gap": 1.0}
    best["high_estimated_gap"] = 5.0
    rows = [best] + [{"method": "npo", "setting": {"beta": b}, "estimated_gap": g} for b, g in ((0.2, 4.5), (0.3, 5.5))]
    told = ties([*rows, {"method": "npo", "setting": {"beta": 9.0}, "stopped": "it diverged"}])
    assert told.startswith("1 of 4 trials lie within the interval of the best, 3.00 [1.00, 5.00]")
    assert "npo beta 0.2." in told and "0.3" not in told
    assert ties([best, rows[2]]) is None


def test_negative_alignment_counts_each_picture_once_however_many_captions_it_has(tiny_clip, shapes):
    model, processor = load_encoder(str(tiny_clip))
    preprocessor = ImageTextPreprocessor(processor, 16)
    rows = shapes.select([*range(4), *range(20, 24)])  # with one caption, and with two
    rows = rows.map(lambda row, n: {"captions": row["captions"] * (1 + 2 * (n % 2))}, with_indices=True)
    evaluator = ImageTextEvaluator(dict.fromkeys(NAMES, EncodedSplit(rows, preprocessor)), preprocessor)
    before = evaluator.evaluate(model)
    with torch.no_grad():
        model.visual_projection.weight.mul_(torch.linspace(0.2, 2, model.visual_projection.weight.shape[1]))
    after = evaluator.evaluate(model)
    assert before.x.shape == before.y.shape == (8, before.x.shape[1])
    tokens = processor.tokenizer([captions[0] for captions in rows["captions"]], padding=True, return_tensors="pt")
    with torch.no_grad():
        first = model.get_text_features(**tokens).pooler_output.double().numpy()
    unit = {name: half / np.linalg.norm(half, axis=1, keepdims=True) for name, half in
            (("x0", before.x.astype(float)), ("x1", after.x.astype(float)), ("y", first))}  # fmt: skip
    gaps = [unit["x0"][i] @ unit["y"][j] - unit["x1"][i] @ unit["y"][j] for i in range(8) for j in range(8) if i != j]
    measured = after.compared_with(before).metrics
    assert measured["negative_alignment"] == pytest.approx(100 * np.mean(gaps), abs=1e-4)
    assert measured["negative_alignment_std"] == pytest.approx(100 * np.std(gaps), abs=1e-4)


def test_zero_shot_accuracy_is_that_of_the_nearest_prompt(tiny_clip, shapes):
    model, processor = load_encoder(str(tiny_clip))
    arguments = RunArguments(prompt_templates=["a {}", "one red {}"], class_names=["circle", "square", "triangle"])
    preprocessor = make_preprocessor(model, processor, DataConfig())
    rows = DatasetDict({name: shapes.select(range(k, 72, 4)) for k, name in enumerate(NAMES)})
    labels = class_labels(rows)
    splits = {name: EncodedSplit(part, preprocessor) for name, part in rows.items()}
    evaluator = ImageTextEvaluator(splits, preprocessor, ZeroShotTask.of(labels, arguments))
    metrics = evaluator.evaluate(model).metrics
    for name in NAMES:
        pixels = preprocessor.batch(splits[name].rows(range(len(splits[name]))), None)["pixel_values"]
        with torch.no_grad():
            images = model.get_image_features(pixels).pooler_output
            nearest = []
            for kind in shapes.features["label"].names:
                tokens = preprocessor.tokenise([f"a {kind}", f"one red {kind}"])
                texts = torch.nn.functional.normalize(model.get_text_features(**tokens).pooler_output, dim=1)
                nearest.append(images @ texts.mean(0) / texts.mean(0).norm())
        hits = torch.stack(nearest).argmax(0) == torch.tensor(rows[name]["label"])
        assert metrics[f"zero_shot_{name}"] == pytest.approx(100 * hits.float().mean().item())
    assert "zero_shot_test" not in ImageTextEvaluator(splits, preprocessor).evaluate(model).metrics


def test_prompts_that_cannot_be_measured_are_refused(shapes):
    rows = DatasetDict({name: shapes.select(range(4)) for name in NAMES})
    with pytest.raises(UserError, match="class_names are 2, and the data has 3 classes"):
        ZeroShotTask.of(class_labels(rows), RunArguments(prompt_templates=["{}"], class_names=["a", "b"]))
    bare = DatasetDict({name: part.remove_columns("label") for name, part in rows.items()})
    with pytest.raises(UserError, match=r"which needs classes\. No label column"):
        ZeroShotTask.of(class_labels(bare), RunArguments(prompt_templates=["{}"]))
    for wrong in ("a photo", "{} or {}"):
        with pytest.raises(UserError, match=r"must hold \{\} once"):
            RunArguments(prompt_templates=[wrong])
    with pytest.raises(UserError, match="give prompt_templates, too"):
        RunArguments(class_names=["a"])
    with pytest.raises(UserError, match="class_names has x more than once; give each class a name of its own"):
        RunArguments(prompt_templates=["{}"], class_names=["x", "y", "x"])


def test_captions_that_are_cut_are_counted(tiny_clip, shapes):
    """Start, end and two words are four tokens or more; what is just as long as the limit is not cut."""
    processor = load_encoder(str(tiny_clip))[1]
    rows = shapes.select([*range(4), *range(20, 24)])
    lengths = [len(tokens) for texts in rows["captions"] for tokens in processor.tokenizer(texts)["input_ids"]]
    limit = sorted(lengths)[len(lengths) // 2]
    preprocessor = ImageTextPreprocessor(processor, limit)
    splits = dict.fromkeys(NAMES, EncodedSplit(rows, preprocessor))
    note, _ = ImageTextEvaluator(splits, preprocessor).notes  # the other: these are few
    longer = sum(length > limit for length in lengths)
    assert 0 < longer < len(lengths)
    assert note.startswith(f"Captions are cut to {limit} tokens: {2 * longer} of the {2 * len(lengths)} in retain and")
    whole = ImageTextPreprocessor(processor, max(lengths))
    (few,) = ImageTextEvaluator(dict.fromkeys(NAMES, EncodedSplit(rows, whole)), whole).notes
    assert "few samples" in few
