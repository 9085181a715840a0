"""Time the library beside other ways to do the same work: one process, in turns, ratios with their spread.

    python recipes/benchmark_speed.py                      # everything, on the GPU if there is one
    python recipes/benchmark_speed.py --device cpu --only views loss --repeats 5
    OMP_NUM_THREADS=1 python recipes/benchmark_speed.py --device cpu --cpu_time   # where other work runs, too
    python recipes/benchmark_speed.py --small --repeats 1  # a few seconds, to see that it runs

Needs the extra `benchmark` (`pip install -e .[benchmark]`), which brings lightly for the reference's loss. Pictures are
random: speed does not depend on what they show. Each line sets a first way to do the work against a second one. The
ratio is the second's time over the first's within one round: the median of the rounds and, in brackets, its range.
"""

import argparse
import ctypes
import itertools
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from datasets import Dataset
from PIL import Image
from sklearn.svm import SVC
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision import transforms
from transformers import CLIPConfig, CLIPModel

from hf_unlearn.cli.guard import guarded
from hf_unlearn.data.config import DataConfig
from hf_unlearn.data.encoded import EncodedSplit
from hf_unlearn.data.preprocessing import ImageViewPreprocessor
from hf_unlearn.data.sampler import SplitSampler
from hf_unlearn.data.views import VIEW_PRESETS, ViewConfig
from hf_unlearn.errors import UserError
from hf_unlearn.losses import ContrastiveTerms, CrossModalTerms, TwoViewTerms, info_nce
from hf_unlearn.methods import METHODS
from hf_unlearn.metrics.cmia import cmia
from hf_unlearn.metrics.emia import REFERENCE_GRID, best_threshold
from hf_unlearn.metrics.linear_probe import cached_views, linear_probe
from hf_unlearn.models.contrastive import embed_images
from hf_unlearn.models.image_processor import image_processor_of
from hf_unlearn.models.loading import load_encoder
from hf_unlearn.models.moco import MoCoConfig, MoCoModel
from hf_unlearn.models.simclr import SimCLRConfig, SimCLRModel
from hf_unlearn.models.small_clip import build_small_clip
from hf_unlearn.runs.arguments import parse_run
from hf_unlearn.runs.builders import simclr
from hf_unlearn.runs.class_labels import class_labels
from hf_unlearn.runs.run_data import prepare_task
from hf_unlearn.runs.unlearn import base_model
from hf_unlearn.training.preprocessor import make_preprocessor
from hf_unlearn.training.trainer import UnlearningTrainer

UNLEARN_SHARE = 0.1  # the paper's 10% task
AC, FINE_TUNE, REFERENCE = "AC", "Fine-Tune", "the reference's construction"
CACHED_FITS, PROTOCOL_FITS = 40, 10  # of the probe, for its accuracy
Work = Callable[[], Any]


@dataclass(frozen=True)
class Setting:
    """Where and how large the benchmark is."""

    device: torch.device
    small: bool
    repeats: int
    workers: int
    compiled: bool = False
    clock: Callable[[], float] = time.perf_counter

    @property
    def cuda(self) -> bool:
        """Whether it runs on a GPU."""
        return self.device.type == "cuda"

    @property
    def pictures(self) -> int:
        """Pictures of a batch; SimCLR and MoCo see two views of each."""
        return 16 if self.small else 256


@dataclass(frozen=True)
class Measurement:
    """One round of one contender: seconds, and peak memory above where it started, in MB."""

    seconds: float
    peak: float


@dataclass(frozen=True)
class Row:
    """A line of the table: one way to do the work against another; times in seconds, peaks in MB."""

    work: str
    first: str
    second: str
    first_seconds: float
    second_seconds: float
    ratio: float
    least: float
    greatest: float
    first_peak: float
    second_peak: float
    note: str = ""

    def __str__(self) -> str:
        times = f"{_seconds(self.first_seconds)} against {_seconds(self.second_seconds)}"
        ratio = f"ratio {self.ratio:.2f} ({self.least:.2f} to {self.greatest:.2f})"
        peaks = f"peak {self.first_peak:.0f} against {self.second_peak:.0f} MB"
        details = "; ".join(part for part in (f"{times}, {ratio}", peaks, self.note) if part)
        return f"{self.work}: {self.first} against {self.second}\n    {details}"


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 1 else f"{1e3 * value:.3g} ms"


class Rounds:
    """What every contender took, round by round."""

    def __init__(self, setting: Setting, contenders: dict[str, Work]) -> None:
        self.contenders = contenders
        for work in contenders.values():  # once without a clock: caches, lazy initialisation, kernel choice
            work()
        self.taken: dict[str, list[Measurement]] = {name: [] for name in contenders}
        for _ in range(setting.repeats):
            for name, work in contenders.items():
                self.taken[name].append(measure(setting.device, work, setting.clock))

    def seconds(self, name: str) -> float:
        """Median of a contender."""
        return statistics.median(m.seconds for m in self.taken[name])

    def peak(self, name: str) -> float:
        """Median peak memory of a contender, in MB."""
        return statistics.median(m.peak for m in self.taken[name])

    def compare(self, work: str, first: str, second: str, note: str = "") -> Row:
        """One contender against another."""
        pairs = zip(self.taken[first], self.taken[second], strict=True)
        ratios = [b.seconds / a.seconds for a, b in pairs]
        return Row(
            work,
            first,
            second,
            self.seconds(first),
            self.seconds(second),
            statistics.median(ratios),
            min(ratios),
            max(ratios),
            self.peak(first),
            self.peak(second),
            note,
        )


def measure(device: torch.device, work: Work, clock: Callable[[], float] = time.perf_counter) -> Measurement:
    """Run once and read clock and memory."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() / 2**20
        started = clock()
        work()
        torch.cuda.synchronize()
        return Measurement(clock() - started, torch.cuda.max_memory_allocated() / 2**20 - before)
    if platform.system() == "Linux":
        ctypes.CDLL(None).malloc_trim(0)  # or memory that an earlier round gave back would hide this one's
        Path("/proc/self/clear_refs").write_text("5")  # starts the peak anew
    before = _process_memory("VmRSS")
    started = clock()
    work()
    return Measurement(clock() - started, _process_memory("VmHWM") - before)


def _process_memory(field: str) -> float:
    if platform.system() != "Linux":
        return float("nan")
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))


def matrix_rate(setting: Setting, dtype: torch.dtype, size: int) -> float:
    """The hardware's floating-point operations a second, as the best of several square matrix products."""
    left, right = (torch.randn(size, size, device=setting.device, dtype=dtype) for _ in range(2))
    best = min(measure(setting.device, lambda: left @ right, setting.clock).seconds for _ in range(8))
    return 2 * size**3 / best


class TrainerStep:
    """The next training step of the library's own Trainer at each call: batch, views, both passes, update."""

    def __init__(self, trainer: UnlearningTrainer) -> None:
        self.trainer = trainer
        self.model, self.optimizer = trainer.accelerator.prepare(trainer.model, trainer.optimizer)
        trainer.current_gradient_accumulation_steps = 1
        self.batches = _endless(trainer.get_train_dataloader())

    def __call__(self) -> Tensor:
        """Take the step and return its loss."""
        loss = self.trainer.training_step(self.model, next(self.batches))
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss


def _endless(loader: Any) -> Iterator[Any]:
    while True:
        yield from loader


def trainer_step(setting: Setting, method: str, model: nn.Module, processor: Any, data: Dataset, folder: str) -> Work:
    """The step of a method on a model, with the paper's optimiser for views and AdamW for CLIP."""
    config = METHODS[method].config_class(
        output_dir=folder,
        use_cpu=not setting.cuda,
        bf16=setting.cuda,
        channels_last=True,  # on a CPU an option, which is faster there, too
        torch_compile=setting.compiled,
        per_device_train_batch_size=setting.pictures,
        report_to="none",
    )
    unlearn = round(UNLEARN_SHARE * len(data))
    splits = {"retain": data.select(range(unlearn, len(data))), "unlearn": data.select(range(unlearn))}
    preprocessor = make_preprocessor(model, processor, DataConfig())  # type: ignore[arg-type]
    encoded = {name: EncodedSplit(part, preprocessor) for name, part in splits.items()}
    trainer = METHODS[method](
        model,  # type: ignore[arg-type]
        config,
        encoded,
        processing_class=processor,
        optimizers=(optimizer_of(model.to(setting.device)), None),
    )
    return TrainerStep(trainer)


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    """SGD for view encoders, as in the paper; AdamW for CLIP."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if isinstance(model, CLIPModel):
        return torch.optim.AdamW(parameters, lr=1e-4, fused=True)
    return torch.optim.SGD(parameters, lr=0.006, momentum=0.9, weight_decay=5e-4, fused=True)


class TorchvisionViews(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """Views of every picture, drawn one picture at a time with torchvision."""

    def __init__(self, pixels: np.ndarray, config: ViewConfig, count: int) -> None:
        self.pixels = pixels
        self.count = count
        self.view = transforms.Compose(
            [
                transforms.RandomResizedCrop(config.size, scale=config.crop_scale),
                transforms.RandomHorizontalFlip(config.flip),
                transforms.RandomApply([transforms.ColorJitter(*config.jitter)], config.jitter_probability),
                transforms.RandomGrayscale(config.grayscale),
                transforms.ToTensor(),
                transforms.Normalize(config.mean, config.std),
            ]
        )

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        picture = Image.fromarray(self.pixels[index])
        return torch.stack([self.view(picture) for _ in range(self.count)]), index


class ReferenceStep:
    """One step of Alignment Calibration as the published CIFAR code constructs it.

    A third view of every picture is drawn and embedded. Each unlearn sample's second view gives way to the third view
    of another unlearn sample, lightly's NT-Xent runs over the mixed batch, and the cosine of the true pairs, weighted
    by the unlearn share, is added. Single precision.
    """

    def __init__(self, setting: Setting, model: SimCLRModel, pixels: np.ndarray) -> None:
        from lightly.loss import NTXentLoss

        self.setting = setting
        self.model = model.to(setting.device).train()  # type: ignore[arg-type]
        self.optimizer = optimizer_of(model)
        self.nt_xent = NTXentLoss(temperature=model.config.temperature)
        retain = len(pixels) - round(UNLEARN_SHARE * len(pixels))
        self.retain = retain
        self.batches = _endless(
            torch.utils.data.DataLoader(
                TorchvisionViews(pixels, VIEW_PRESETS["cifar"], 3),
                batch_size=setting.pictures,
                sampler=SplitSampler(retain, len(pixels) - retain, setting.pictures),
                num_workers=setting.workers,
                pin_memory=setting.cuda,
                persistent_workers=setting.workers > 0,
            )
        )

    def __call__(self) -> Tensor:
        """Take the step and return its loss."""
        views, index = next(self.batches)
        views = views.to(self.setting.device, non_blocking=True)
        first, second, third = (self.model.get_projected_features(view) for view in views.unbind(1))
        unlearn = (index >= self.retain).nonzero().flatten().to(self.setting.device)
        mixed = second.clone()
        mixed[unlearn] = third[unlearn.roll(1)]
        positive = F.cosine_similarity(first[unlearn], second[unlearn]).mean()
        loss = self.nt_xent(first, mixed) + UNLEARN_SHARE * positive
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.detach()


def random_pictures(count: int, side: int) -> np.ndarray:
    """`[count, side, side, 3]` uint8."""
    return np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def as_dataset(pixels: np.ndarray, **columns: list[Any]) -> Dataset:
    """Pictures in the library's schema."""
    return Dataset.from_dict({"image": [Image.fromarray(picture) for picture in pixels], **columns})


def view_steps(setting: Setting, folder: str) -> Iterator[Row]:
    """SimCLR and MoCo, ResNet-18 with the CIFAR stem."""
    width = 8 if setting.small else 64
    pixels = random_pictures(2 * setting.pictures, 32)
    data, processor = as_dataset(pixels), image_processor_of(VIEW_PRESETS["cifar"])
    step = partial(trainer_step, setting, processor=processor, data=data, folder=folder)

    def simclr() -> SimCLRModel:
        torch.manual_seed(0)
        return SimCLRModel(SimCLRConfig(width=width))

    def moco() -> MoCoModel:
        torch.manual_seed(0)
        return MoCoModel(MoCoConfig(width=width, queue_size=4096))

    views = f"{2 * setting.pictures} views"
    rounds = Rounds(
        setting,
        {
            AC: step("alignment_calibration", simclr()),
            FINE_TUNE: step("fine_tune", simclr()),
            REFERENCE: ReferenceStep(setting, simclr(), pixels),
        },
    )
    yield rounds.compare(f"SimCLR step, {views}", AC, REFERENCE, throughput(setting, rounds, "images"))
    yield rounds.compare(f"SimCLR step, {views}", FINE_TUNE, AC)
    rounds = Rounds(setting, {AC: step("alignment_calibration", moco()), FINE_TUNE: step("fine_tune", moco())})
    yield rounds.compare(f"MoCo step, {views}", FINE_TUNE, AC, throughput(setting, rounds, "images"))


def throughput(setting: Setting, rounds: Rounds, items: str) -> str:
    """How many items AC sees a second, and which share of the hardware's matrix rate that is, end to end."""
    with torch.compiler.set_stance("force_eager"), FlopCounterMode(display=False) as counter:  # compiled, it sees none
        rounds.contenders[AC]()
    dtype, size = (torch.bfloat16, 8192) if setting.cuda else (torch.float32, 512 if setting.small else 2048)
    rate = matrix_rate(setting, dtype, size)
    share = 100 * counter.get_total_flops() / rounds.seconds(AC) / rate
    kind = str(dtype).removeprefix("torch.")
    speed = setting.pictures / rounds.seconds(AC)
    return f"AC {speed:.0f} {items}/s, {share:.0f}% of the measured {rate / 1e9:.0f} GFLOP/s of {kind} matrix products"


class PlainClipStep:
    """One step of a plain Hugging Face loop: `CLIPModel(..., return_loss=True)`, inputs from the processor or given."""

    def __init__(self, setting: Setting, model: CLIPModel, batches: Iterator[dict[str, Tensor]]) -> None:
        self.setting, self.model, self.batches = setting, model.to(setting.device).train(), batches  # type: ignore[arg-type]
        self.optimizer = optimizer_of(model)

    def __call__(self) -> Tensor:
        """Take the step and return its loss."""
        batch = {name: value.to(self.setting.device) for name, value in next(self.batches).items()}
        with torch.autocast(self.setting.device.type, torch.bfloat16, enabled=self.setting.cuda):
            loss = self.model(**batch, return_loss=True).loss
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.detach()


def clip_steps(setting: Setting, folder: str) -> Iterator[Row]:
    """CLIP: the small one of the demo on a CPU, ViT-B/32 on a GPU."""
    side = 224 if setting.cuda else 32
    captions = [f"{number} dogs in a photograph of the sea" for number in range(2 * setting.pictures)]
    data = as_dataset(random_pictures(len(captions), side), captions=[[caption] for caption in captions])
    _, processor = build_small_clip(captions, image_size=side)

    def clip() -> CLIPModel:
        torch.manual_seed(0)
        if not setting.cuda:
            return build_small_clip(captions, image_size=side)[0]
        known = processor.tokenizer
        tokens = {"pad_token_id": known.pad_token_id, "bos_token_id": known.bos_token_id}
        tokens["eos_token_id"] = known.eos_token_id
        return CLIPModel(CLIPConfig(text_config=tokens))

    def processed() -> Iterator[dict[str, Tensor]]:
        while True:
            for start in range(0, len(data), setting.pictures):
                rows = data[start : start + setting.pictures]
                texts = [texts[0] for texts in rows["captions"]]
                yield dict(
                    processor(
                        images=rows["image"], text=texts, padding="max_length", truncation=True, return_tensors="pt"
                    )
                )

    ready = [{name: value.to(setting.device) for name, value in batch.items()} for batch in islice(processed(), 2)]
    processing, given = "CLIPModel's own loss and processor", "CLIPModel's own loss, inputs ready"
    rounds = Rounds(
        setting,
        {
            AC: trainer_step(setting, "alignment_calibration", clip(), processor, data, folder),
            processing: PlainClipStep(setting, clip(), processed()),
            given: PlainClipStep(setting, clip(), _endless(ready)),
        },
    )
    rate = throughput(setting, rounds, "pairs")
    for other in (processing, given):
        yield rounds.compare(f"CLIP step, {setting.pictures} pairs", AC, other, rate)


def dense_cross_modal(x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
    """CLIP's loss over the whole similarity matrix."""
    logits = scale * F.normalize(x, dim=-1) @ F.normalize(y, dim=-1).T
    target = torch.arange(len(x), device=x.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def dense_two_view(x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
    """NT-Xent over the whole similarity matrix."""
    views = F.normalize(torch.cat([x, y]), dim=-1)
    logits = scale * views @ views.T
    logits = logits.masked_fill(torch.eye(len(views), dtype=torch.bool, device=x.device), float("-inf"))
    return F.cross_entropy(logits, (torch.arange(len(views), device=x.device) + len(x)) % len(views))


def loss_passes(setting: Setting, _: str) -> Iterator[Row]:
    """Both passes of the loss alone over a similarity matrix of 4,096 x 4,096, embeddings of 256 dimensions."""
    rows = 512 if setting.small else 4096
    cases: tuple[tuple[type[ContrastiveTerms], Callable[..., Tensor], int], ...] = (
        (CrossModalTerms, dense_cross_modal, rows),
        (TwoViewTerms, dense_two_view, rows // 2),
    )
    for terms, dense, n in cases:
        x, y = (torch.randn(n, 256, device=setting.device, requires_grad=True) for _ in range(2))
        scale = torch.tensor(14.0, device=setting.device, requires_grad=True)
        everything = torch.ones(n, device=setting.device)

        def both_passes(loss: Callable[[], Tensor], leaves: tuple[Tensor, ...] = (x, y, scale)) -> None:
            for leaf in leaves:
                leaf.grad = None
            loss().backward()

        def ours(
            terms: type[ContrastiveTerms] = terms,
            x: Tensor = x,
            y: Tensor = y,
            s: Tensor = scale,
            m: Tensor = everything,
        ) -> Tensor:
            return info_nce(terms(x, y, s), m)

        blocks, whole = "block-wise", "the whole matrix"
        contenders: dict[str, Work] = {
            blocks: partial(both_passes, ours),
            whole: partial(both_passes, partial(dense, x, y, scale)),
        }
        title = f"{terms.__name__}, {rows} x {rows} similarities, forward and backward"
        yield Rounds(setting, contenders).compare(title, blocks, whole)


# Both passes of a loss in a process of its own: this file's folder, terms, candidates and device are its arguments.
MEMORY = """
import json, sys
import torch
sys.path.insert(0, sys.argv[1])
from benchmark_speed import measure
from hf_unlearn import losses
terms, candidates, device = getattr(losses, sys.argv[2]), int(sys.argv[3]), torch.device(sys.argv[4])

def passes(n):
    x, y = (torch.randn(n, 256, device=device).requires_grad_() for _ in range(2))
    x.grad, y.grad = torch.zeros_like(x), torch.zeros_like(y)
    scale = torch.tensor(14.0, device=device, requires_grad=True)
    return lambda: losses.info_nce(terms(x, y, scale), torch.ones(n, device=device)).backward()

passes(64)()  # what is set up on first use is not counted
taken = measure(device, passes(candidates // 2 if terms is losses.TwoViewTerms else candidates))
print(json.dumps([taken.seconds, taken.peak]))
"""


def loss_memory(setting: Setting, _: str) -> Iterator[Row]:
    """Both passes of the loss at more and more candidates of 256 dimensions: peak above embeddings and gradients."""
    sizes = (512, 1024) if setting.small else (8_192, 16_384, 32_768)
    for terms in (CrossModalTerms, TwoViewTerms):
        fixed = [str(Path(__file__).parent), terms.__name__]
        yield from growth(
            setting,
            f"{terms.__name__}, memory above embeddings and gradients (wanted: under 300 MB)",
            "candidates",
            {size: [MEMORY, *fixed, str(size), str(setting.device)] for size in sizes},
        )


def growth(setting: Setting, work: str, unit: str, scripts: dict[int, list[str]]) -> Iterator[Row]:
    """How seconds and peak memory grow with the size of the work, each measured in processes of its own.

    Args:
        setting: how often.
        work: what is done.
        unit: what sizes count.
        scripts: for each size, a script that prints both as JSON, and its arguments.
    """
    taken: dict[int, list[Measurement]] = {}
    for size, script in scripts.items():
        command = [sys.executable, "-c", *script]
        runs = [subprocess.run(command, capture_output=True, text=True, check=True) for _ in range(setting.repeats)]
        taken[size] = [Measurement(*json.loads(run.stdout)) for run in runs]
    smallest, first = next(iter(taken.items()))
    for size, each in taken.items():
        ratios = [a.seconds / b.seconds for a, b in zip(each, first, strict=True)]
        yield Row(
            work,
            f"{smallest:,} {unit}",
            f"{size:,} {unit}",
            statistics.median(m.seconds for m in first),
            statistics.median(m.seconds for m in each),
            statistics.median(ratios),
            min(ratios),
            max(ratios),
            statistics.median(m.peak for m in first),
            statistics.median(m.peak for m in each),
        )


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
    recipe = Path(__file__).parent / "configs" / "simclr_openmoji.yaml"
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

        if kept is not None:
            stacked = torch.stack([fresh(0) for _ in range(kept)], dim=1)
        augmented = fresh if kept is None else cached_views(stacked, plain=sets["retain"][0] if kept < 10 else None)
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


def mean_and_error(values: list[float]) -> str:
    """The mean, its standard error and the number of values."""
    error = statistics.stdev(values) / len(values) ** 0.5
    return f"{statistics.mean(values):.2f} ± {error:.2f} of {len(values)} fits"


# Plans one request in a process of its own: where, rows, ids asked for and the folder of shards are its arguments.
PLANNING = """
import json, sys, time
import numpy as np, pyarrow as pa, pyarrow.compute as pc
from hf_unlearn.data.shards import request_rows_in_shards
from hf_unlearn.data.splits import request_rows
where, rows, requested, folder = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
asked = np.random.default_rng(0).choice(rows, requested, replace=False).astype(str).tolist()
request_rows(["a"], ["a"])  # what is imported on first use is not timed
started = time.process_time()  # of the processor, whatever else runs beside
if where == "shards":
    found = request_rows_in_shards([f"{folder}/{rows}.parquet"], asked).count
else:
    found = len(request_rows(pc.cast(pa.array(np.arange(rows)), pa.string()), asked))
assert found == requested
seconds = time.process_time() - started
status = open("/proc/self/status") if sys.platform == "linux" else ()
peak = next((int(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM")), float("nan"))
print(json.dumps([seconds, peak]))
"""


def plannings(setting: Setting, folder: str) -> Iterator[Row]:
    """A request against more and more rows: how processor time and a whole process's peak memory grow."""
    sizes = (10_000, 30_000) if setting.small else (1_000_000, 3_000_000, 10_000_000, 100_000_000)
    for where in ("memory", "shards"):
        scripts = {}
        for rows in sizes if where == "shards" else sizes[:3]:
            if where == "shards":
                write_ids(Path(folder) / f"{rows}.parquet", rows)
            scripts[rows] = [PLANNING, where, str(rows), str(sizes[0]), folder]
        yield from growth(setting, f"Request of {sizes[0]:,} ids, planned in {where}", "rows", scripts)


def write_ids(path: Path, rows: int) -> None:
    """A parquet shard of numbered ids."""
    with pq.ParquetWriter(path, pa.schema({"id": pa.string()})) as writer:
        for start in range(0, rows, 1_000_000):
            ids = pc.cast(pa.array(np.arange(start, min(start + 1_000_000, rows))), pa.string())
            writer.write_table(pa.table({"id": ids}))


PARTS: dict[str, Callable[[Setting, str], Iterator[Row]]] = {
    "views": view_steps,
    "clip": clip_steps,
    "loss": loss_passes,
    "memory": loss_memory,
    "evaluation": evaluations,
    "probe": probes,
    "planning": plannings,
}
ON_A_GPU = (
    "SimCLR AC step on a GPU against the reference's construction (wanted: 3 or more, end to end)",
    "share of a GPU's measured bf16 rate (wanted: 40% or more)",
)


def main() -> None:
    """Read the options, run the parts, print the table as it grows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    parser.add_argument("--repeats", type=int, default=5, help="rounds; each runs every contender once")
    parser.add_argument("--small", action="store_true", help="tiny models and batches: figures mean nothing")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="parts to run")
    parser.add_argument("--workers", type=int, help="of the reference's DataLoader; default: 8 on a GPU, 0 on a CPU")
    parser.add_argument("--compile", action="store_true", help="torch_compile in the library's steps")
    parser.add_argument("--cpu_time", action="store_true", help="seconds of the processor, on a CPU that is shared")
    parser.add_argument("--output", type=Path, help="also write the table as JSON")
    options = parser.parse_args()
    if options.repeats < 1:
        raise UserError(f"--repeats {options.repeats} measures nothing; use at least 1")
    if options.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: no GPU is visible to PyTorch; use --device cpu")
    if options.cpu_time and options.device == "cuda":
        raise UserError("--cpu_time says nothing of a GPU; use --device cpu, or leave it out")
    workers = options.workers if options.workers is not None else 8 * (options.device == "cuda")
    clock = time.process_time if options.cpu_time else time.perf_counter
    device = torch.device(options.device)
    setting = Setting(device, options.small, options.repeats, workers, options.compile, clock)
    where = torch.cuda.get_device_name() if setting.cuda else f"CPU, {torch.get_num_threads()} threads"
    described = f"{where}; PyTorch {torch.__version__}; {setting.repeats} rounds"
    described += "; small" * setting.small + "; compiled" * setting.compiled + "; processor time" * options.cpu_time
    print(f"{described}\n")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in options.only:
            for row in PARTS[name](setting, folder):
                rows.append(row)
                print(row, flush=True)
    if not setting.cuda:
        print(*(f"{what}: not measured" for what in ON_A_GPU), sep="\n")
    if options.output is not None:
        options.output.write_text(json.dumps({"where": where, "rows": [asdict(row) for row in rows]}, indent=1) + "\n")


if __name__ == "__main__":
    guarded(main)
