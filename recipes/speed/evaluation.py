"""Evaluation: thresholds, attacks, the linear probe, and a whole checkpoint."""

import itertools
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from sklearn.svm import SVC
from torch import Tensor

from hf_unlearn.data.encoded import EncodedSplit
from hf_unlearn.data.preprocessing import ImageViewPreprocessor
from hf_unlearn.metrics.cmia import cmia
from hf_unlearn.metrics.emia import REFERENCE_GRID, best_threshold
from hf_unlearn.metrics.linear_probe import cached_views, linear_probe
from hf_unlearn.models.contrastive import embed_images
from hf_unlearn.models.loading import load_encoder
from hf_unlearn.runs.builders import simclr
from hf_unlearn.runs.class_labels import class_labels
from hf_unlearn.runs.command_line import parse_run
from hf_unlearn.runs.run_data import prepare_task
from hf_unlearn.runs.unlearn import base_model
from hf_unlearn.training.rows import make_preprocessor
from speed.rounds import Rounds, Row, Setting
from speed.views import TorchvisionViews

CACHED_FITS, PROTOCOL_FITS = 40, 10  # of the probe, for its accuracy
PLAIN_EVERY = 10  # epochs from one with plain features to the next, where few views are cached


def evaluations(setting: Setting, _: str) -> Iterator[Row]:
    """EMIA's threshold on 20,000 scores, and CMIA; on the CPU."""
    generator = np.random.default_rng(0)
    members, others = generator.beta(8, 2, 10_000), generator.beta(7, 3, 10_000)

    def grid() -> float:
        right = [(members >= point).sum() + (others < point).sum() for point in REFERENCE_GRID]
        return float(REFERENCE_GRID[int(np.argmax(right))])

    exact, points = "sorted, exact", "501 points, a pass each"
    rounds = Rounds(setting, {exact: lambda: best_threshold(members, others), points: grid})
    yield rounds.compare("EMIA's threshold, 20,000 scores", exact, points)
    size = 200 if setting.small else 2000
    scores = [generator.beta(*shape, size) for shape in ((8, 2), (7, 3), (7, 3))]
    one, three = "one call to predict", "three calls"

    def separately() -> None:
        attack = SVC(C=3, kernel="rbf", gamma="auto")
        attack.fit(np.concatenate([scores[0], scores[2]])[:, None], np.repeat([True, False], size))
        for part in (scores[1], scores[2], scores[0]):
            attack.predict(part[:, None])

    rounds = Rounds(setting, {one: lambda: cmia(*scores), three: separately})
    yield rounds.compare(f"CMIA, {size} members and {size} non-members", one, three)


def probes(setting: Setting, folder: str) -> Iterator[Row]:
    """The linear probe by its fast protocol and by the paper's, which embeds fresh views in each of 100 epochs.

    The paper's is timed twice: with views drawn by torchvision, one picture at a time, and with the library's batches.
    On the embedded pictures and their SimCLR encoder, which is trained first where the cache has none.
    """
    recipe = Path(__file__).parents[1] / "configs" / "simclr_openmoji.yaml"
    run = parse_run(["--config", str(recipe), "--output_dir", folder])
    task = prepare_task(run.arguments)
    model, processor = simclr(run, task) if setting.small else load_encoder(base_model(run, task, simclr))
    model.to(setting.device).eval()  # type: ignore[arg-type]
    preprocessor = make_preprocessor(model, processor, run.data)
    assert isinstance(preprocessor, ImageViewPreprocessor)
    labels, views = class_labels(task.splits).of, preprocessor.views
    assert labels is not None
    rows = {name: EncodedSplit(task.splits[name], preprocessor) for name in ("retain", "unlearn", "test")}
    pixels = {name: next(split.batches(len(split)))["pixels"].to(setting.device) for name, split in rows.items()}
    seeds, accuracies = itertools.count(), defaultdict(list)
    drawn_singly = torch.utils.data.DataLoader(
        TorchvisionViews(pixels["retain"].permute(0, 2, 3, 1).cpu().numpy(), views.config, 1),
        batch_size=256,
        num_workers=setting.workers,
        pin_memory=setting.cuda,
        persistent_workers=setting.workers > 0,
    )

    @torch.no_grad()
    def embed_one_by_one() -> Tensor:
        return torch.cat([embed_images(model, view[:, 0].to(setting.device)).cpu() for view, _ in drawn_singly])

    @torch.no_grad()
    def embed(pictures: Tensor, view: bool = True) -> Tensor:
        parts = pictures.split(256)
        drawn = [views(part, seed=next(seeds), count=1)[:, 0] if view else views.plain(part) for part in parts]
        return torch.cat([embed_images(model, part) for part in drawn]).cpu()

    def probe(name: str, kept: int | None) -> None:
        sets = {split: (embed(pixels[split], view=False), labels[split]) for split in rows}

        def fresh(_: int) -> Tensor:
            return embed_one_by_one() if name == singly else embed(pixels["retain"])

        augmented: Callable[[int], Tensor] = fresh
        if kept is not None:
            stacked = torch.stack([fresh(0) for _ in range(kept)], dim=1)
            augmented = views_and_plain(stacked, sets["retain"][0]) if kept < 10 else cached_views(stacked)
        result = linear_probe(sets["retain"], sets["unlearn"], sets["test"], augmented=augmented)
        accuracies[name].append(result.test_accuracy)

    eight, ten = "eight views and the plain pictures", "ten views"
    singly, paper = "the paper's protocol with torchvision's views", "the paper's protocol with batched views"
    ways = {eight: 8, ten: 10, singly: None, paper: None}
    rounds = Rounds(setting, {name: partial(probe, name, kept) for name, kept in ways.items()})
    for name, kept in ways.items():  # accuracies scatter with the views by .8 or so
        for _ in range(
            0 if setting.small else (PROTOCOL_FITS if kept is None else CACHED_FITS) - len(accuracies[name])
        ):
            probe(name, kept)
    for way, other in itertools.product((eight, ten), (singly, paper)):
        note = ", ".join(f"test accuracy {mean_and_error(accuracies[name])} ({name})" for name in (way, other))
        yield rounds.compare(f"Linear probe, {len(rows['retain'])} pictures, encoder passes included", way, other, note)


def views_and_plain(views: Tensor, plain: Tensor) -> Callable[[int], Tensor]:
    """Goes round cached views `[r, k, d]`, with the plain features `[r, d]` every tenth epoch.

    Few views alone are learned by heart. The probe is evaluated on the plain features anyway, and they make eight do.
    """
    cached = cached_views(views)

    def features_of(epoch: int) -> Tensor:
        tens, place = divmod(epoch, PLAIN_EVERY)
        return plain if place == PLAIN_EVERY - 1 else cached(epoch - tens)

    return features_of


def mean_and_error(values: list[float]) -> str:
    """The mean, its standard error and the number of values."""
    error = statistics.stdev(values) / len(values) ** 0.5
    return f"{statistics.mean(values):.2f} ± {error:.2f} of {len(values)} fits"
