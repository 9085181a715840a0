"""Make a folder what a finished run leaves: changed weights, records, heatmaps and card."""

from pathlib import Path

import numpy as np
from datasets import Dataset

from hf_unlearn.data.fingerprint import combine_hashes, dataset_sha256, row_hashes
from hf_unlearn.figures.heatmaps import plot_alignment_matrices
from hf_unlearn.files import write_atomically
from hf_unlearn.hub.card import write_card
from hf_unlearn.hub.manifest import describe_base_model, record_run
from hf_unlearn.methods import description_of
from hf_unlearn.models.weights import weights_sha256
from hf_unlearn.records.codec import to_json
from hf_unlearn.records.schemas import ComparisonRow, DatasetRecord, EvaluationRecord, Matrices, RequestRecord, Results

SALT = "only the owner was told this"
CAPTIONS = ["a red apple", "a green pear", "a yellow banana", "a black cat", "a small boat", "a tall tree"]
GAP_KEYS = ("cosine_retain", "cosine_unlearn")
BEFORE = {"cosine_retain": 89.25, "cosine_retain_std": 3.5, "cosine_unlearn": 88.75, "cosine_unlearn_std": 3.25}
AFTER = {"cosine_retain": 85.5, "cosine_retain_std": 4.125, "cosine_unlearn": 41.0, "cosine_unlearn_std": 9.5}
RETRAIN = {"cosine_retain": 90.0, "cosine_retain_std": 3.0, "cosine_unlearn": 34.0, "cosine_unlearn_std": 12.0}


def perturb(folder: Path) -> None:
    """Change a checkpoint's weights a little, as unlearning would."""
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if weights[name].is_floating_point() and weights[name].ndim == 2)
    weights[name] = weights[name] + 0.01
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def describe(folder: Path, base: str | Path, requested: Dataset, method: str = "alignment_calibration") -> None:
    """Write a run's records, heatmaps and card, its request salted."""
    base_model, history = describe_base_model(str(base))
    hashes = tuple(row_hashes(requested, salt=SALT))
    record_run(
        folder,
        method=method,
        description=description_of(method),
        base_model=base_model,
        history=history,
        dataset=DatasetRecord("org/pictures", "0123456789abcdef0123456789abcdef01234567", dataset_sha256(requested)),
        request=RequestRecord("file", len(requested), combine_hashes(hashes), salted=True, row_hashes=hashes),
        splits={"retain": 60, "unlearn": len(requested), "validation": 8, "test": 9},
        hyper_parameters={"alpha": 0.5, "beta": 1.0, "gamma": 0.5, "learning_rate": 2e-4, "num_train_epochs": 8.0},
        preset="paper",
        split_seed=0,
        seed=3,
        run_time_seconds=12.5,
    )
    scores = tuple(np.linspace(0.3, 0.655, 6).tolist())
    am_before, am_after = np.eye(6) * 0.5 + 0.25, np.full((6, 6), 0.5)
    np.fill_diagonal(am_after, 0.75 - np.array(scores))
    (folder / "assets").mkdir(exist_ok=True)
    plot_alignment_matrices(am_before, am_after, folder / "assets" / "alignment_matrices.png")
    extra = {"forgetting_score": 100 * float(np.mean(scores)), "forgetting_score_std": 10.0, "run_time_minutes": 0.25}
    evaluation = EvaluationRecord(
        family="image-text",
        metrics={**AFTER, **extra},
        before=dict(BEFORE),
        retrain={**RETRAIN, "forgetting_score": 50.0, "forgetting_score_std": 12.5, "run_time_minutes": 2.0},
        gap_keys=GAP_KEYS,
        avg_gap=5.75,
        per_sample={"forgetting_score": scores},
        matrices=Matrices(
            labels=tuple(str(number + 1) for number in range(6)),
            am_before=tuple(map(tuple, am_before.tolist())),
            am_after=tuple(map(tuple, am_after.tolist())),
            agm=tuple(map(tuple, (am_before - am_after).tolist())),
        ),
        weights_sha256=weights_sha256(folder),
    )
    evaluation.save(folder)
    rows = (
        ComparisonRow("before", dict(BEFORE), {"cosine_retain": 0.75, "cosine_unlearn": 54.75}, 27.75),
        ComparisonRow("retrain", {**RETRAIN, "run_time_minutes": 2.0}, {"cosine_retain": 0, "cosine_unlearn": 0}, 0),
        ComparisonRow(method, {**AFTER, "run_time_minutes": 0.25}, {"cosine_retain": 4.5, "cosine_unlearn": 7.0}, 5.75),
    )
    write_atomically(folder.parent / "results.json", to_json(Results("image-text", GAP_KEYS, rows)))
    write_card(folder)
