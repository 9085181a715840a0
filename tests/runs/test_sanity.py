"""What is said of a model after its training, from what is measured anyway."""

import numpy as np
import pytest

from hf_unlearn.metrics.estimated_gap import ViewEvidence
from hf_unlearn.runs.evaluation import Evaluation
from hf_unlearn.runs.sanity import sanity_notes
from hf_unlearn.training.shrink_perturb import taken

X = np.random.default_rng(0).normal(size=(40, 8))
BEFORE = {"cosine_retain": 71.0, "cosine_unlearn": 70.0, "cosine_validation": 24.0, "recall_validation": 18.0}


def pairs(alignment=0.7, spread=0.8, **metrics):
    evidence = ViewEvidence(np.full(40, alignment), np.full(30, alignment))
    return Evaluation({**BEFORE, **metrics}, np.full(40, alignment), X, X, evidence, spread=spread)


def views(alignment=0.9, held_out=0.8, **metrics):
    evidence = ViewEvidence(np.full(40, alignment), np.full(30, held_out))
    return Evaluation({"emia": 50.0, **metrics}, np.full(40, alignment), X, X, evidence)


def beside_held_out(unlearn, held_out, **metrics):
    """Of pairs with these alignments."""
    evidence = ViewEvidence(np.array(unlearn), np.array(held_out))
    return Evaluation({**BEFORE, **metrics}, np.array(unlearn), X, X, evidence)


@pytest.mark.parametrize(
    ("after", "words"),
    [
        (pairs(alignment=0.3, cosine_unlearn=25.0, cosine_retain=69.0), []),
        (pairs(alignment=0.7004), ["Nothing was unlearned: the cosines of unlearn samples moved by 0.0004"]),
        (pairs(0.2, cosine_unlearn=20.0, cosine_retain=60.5), ["mean cosine fell from 71 to 60 points"]),
        (pairs(0.2, cosine_unlearn=20.0, cosine_retain=61.5), []),
        (
            pairs(-0.6, cosine_retain=-29.0, cosine_unlearn=-60.0, cosine_validation=-70.0),
            ["All cosines moved together (points: retain by -100, unlearn by -130, validation by -94)"],
        ),
        (pairs(0.9, cosine_retain=95.0, cosine_unlearn=92.0, cosine_validation=90.0), ["All cosines moved together"]),
        (pairs(0.3, recall_validation=11.9), ["Retrieval on validation fell from 18.0% to 11.9%"]),
        (pairs(0.3, recall_validation=12.1), []),
        (pairs(0.3, cosine_retain=47.0, cosine_unlearn=-51.0, cosine_validation=12.0), ["mean cosine fell from 71 to"]),
        (pairs(0.3, cosine_retain=9.0, cosine_unlearn=-51.0, cosine_validation=-38.0), ["All cosines moved together"]),
        (pairs(0.3, spread=0.19), ["Embeddings of held-out pictures collapsed: their spread is 0.190"]),
        (pairs(0.3, spread=0.21), []),
        (
            pairs(0.3, estimated_gap=9.0, low_estimated_gap=8.1),
            ["further from Retrain than before: the estimated gap is 9.0, and was 6.0"],
        ),
        (pairs(0.3, estimated_gap=9.0, low_estimated_gap=7.9), []),
    ],
)
def test_image_text_models(after, words):
    notes = sanity_notes(pairs(estimated_gap=6.0, high_estimated_gap=8.0), after)
    assert len(notes) == len(words) and all(word in note for word, note in zip(words, notes, strict=True))


HELD_OUT = [0.0, 0.2] * 50  # mean 0.1, standard deviation 0.1


@pytest.mark.parametrize(
    ("unlearn", "words"),
    [
        (
            [0.16] * 80,
            "lie 6.0 points above held-out ones (16.0 and 10.0): unless the request is of another kind, they",
        ),
        ([0.14] * 80, None),  # not by half a standard deviation
        (
            [-0.5] * 5,
            "lie 60.0 points below held-out ones (-50.0 and 10.0): unless the request is of another kind, they",
        ),
        ([0.19] * 4, None),  # four samples lie so by chance
        ([0.21] * 4, "lie 11.0 points above"),
        ([0.25], None),  # one may be anywhere
    ],
)
def test_unlearn_samples_apart_from_held_out_ones_are_told_of(unlearn, words):
    before = beside_held_out([0.9] * len(unlearn), HELD_OUT)
    notes = sanity_notes(before, beside_held_out(unlearn, HELD_OUT))
    assert len(notes) == (words is not None) and all(words in note for note in notes)
    assert not any("lie" in note for note in sanity_notes(before, before))  # nothing was unlearned, which is told


def test_weights_that_were_not_learned_again_are_the_cause_that_is_named():
    lost = pairs(0.3, cosine_retain=30.0, cosine_unlearn=29.0, cosine_validation=5.0)
    (note,) = sanity_notes(pairs(), lost, shrunk=taken(0.4, has_initial=False))
    assert "40% of every weight was new" in note and "num_train_epochs" in note and "shrink_perturb" in note
    (note,) = sanity_notes(pairs(), lost, shrunk=taken(0.4, has_initial=True))
    assert "every weight was moved 40% of the way back to the initial model" in note and " new" not in note
    (note,) = sanity_notes(pairs(), lost)  # of a method that does not learn from retain
    assert "train for longer" not in note
    assert sanity_notes(pairs(), pairs(0.3, cosine_unlearn=29.0), shrunk="much was taken") == ()
    first, second = sanity_notes(views(retain_accuracy=90.0), views(0.5, retain_accuracy=70.0), shrunk="half is new")
    assert "half is new" in first and "lost their classes" in second


def test_the_level_is_said_to_be_unfelt_where_the_loss_is_infonce(tiny_clip):
    from transformers import SiglipConfig, SiglipModel

    from hf_unlearn.models.contrastive import is_sigmoid
    from hf_unlearn.models.loading import load_encoder

    after = pairs(0.9, cosine_retain=95.0, cosine_unlearn=92.0, cosine_validation=90.0)
    small = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    siglip = SiglipModel(
        SiglipConfig(text_config={**small, "vocab_size": 8}, vision_config={**small, "image_size": 16})
    )
    for model, unfelt in ((load_encoder(str(tiny_clip))[0], True), (siglip, False)):
        (note,) = sanity_notes(pairs(), after, is_sigmoid(model))
        assert "All cosines moved together" in note and ("which InfoNCE does not feel" in note) == unfelt


@pytest.mark.parametrize(
    ("after", "words"),
    [
        (views(alignment=0.6), []),
        (
            views(alignment=0.5, held_out=0.3),
            ["(points: unlearn by -40, validation by -50)"],
        ),
        (views(0.7, retain_accuracy=78.0), ["the probe's accuracy fell from 90% to 78%"]),
        (views(0.7, retain_accuracy=81.0), []),
        (views(), ["Nothing was unlearned"]),
    ],
)
def test_view_encoders(after, words):
    notes = sanity_notes(views(retain_accuracy=90.0), after)
    assert len(notes) == len(words) and all(word in note for word, note in zip(words, notes, strict=True))
