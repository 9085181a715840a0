"""What a user waits for: `trainer.train()` as a whole, and the evaluation of one checkpoint."""

import time
from collections.abc import Iterator

import numpy as np
import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_unlearn.data.config import DataConfig
from hf_unlearn.data.encoded import EncodedSplit
from hf_unlearn.data.views import VIEW_PRESETS
from hf_unlearn.methods import METHODS
from hf_unlearn.models.image_processor import image_processor_of
from hf_unlearn.models.simclr import SimCLRConfig, SimCLRModel
from hf_unlearn.runs.class_labels import ClassLabels
from hf_unlearn.runs.evaluation import ImageViewEvaluator
from hf_unlearn.training.rows import make_preprocessor
from speed.rounds import Measurement, Row, Setting, measure
from speed.steps import AC, as_dataset, optimizer_of, random_pictures

WANTED_SECONDS = 2.0  # of the evaluation, on a GPU


class _Clock(TrainerCallback):
    """Reads clock and processor at some steps, when the device is done with them; the last steps are profiled."""

    def __init__(self, steps: tuple[int, ...], cuda: bool) -> None:
        self.steps, self.cuda = steps, cuda
        self.read: dict[int, tuple[float, float]] = {}
        self.profile = profile(activities=[ProfilerActivity.CUDA]) if cuda else None

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        if state.global_step not in self.steps:
            return
        if self.cuda:
            torch.cuda.synchronize()
        self.read[state.global_step] = time.perf_counter(), time.process_time()
        if self.profile is not None and state.global_step == self.steps[-2]:  # these alone: it slows the host
            self.profile.start()
        if self.profile is not None and state.global_step == self.steps[-1]:
            self.profile.stop()

    def busy_seconds(self) -> float:
        """Of a step, for which the device works, be it at one kernel or at several; not a number on a CPU."""
        if self.profile is None:
            return float("nan")
        kernels = [each for each in self.profile.events() if each.device_type == DeviceType.CUDA]
        spans = sorted((k.time_range.start, k.time_range.end) for k in kernels if not k.is_user_annotation)
        busy, reached = 0.0, float("-inf")
        for start, end in spans:
            busy += max(0.0, end - max(start, reached))
            reached = max(reached, end)
        return busy / 1e6 / (self.steps[-1] - self.steps[-2])


def _simclr(setting: Setting) -> SimCLRModel:
    torch.manual_seed(0)
    return SimCLRModel(SimCLRConfig(width=8 if setting.small else 64))


def whole_trainings(setting: Setting, folder: str) -> Iterator[Row]:
    """Steps of `trainer.train()`, SimCLR: what they take, and how much of that the device works."""
    pictures = random_pictures(8 * setting.pictures if setting.small else 14_451, 32)
    unlearn = len(pictures) // 10
    data = as_dataset(pictures)
    few = setting.small or not setting.cuda  # a step of a CPU takes a quarter of a minute
    steps = (1, 2, 4, 6) if few else (1, 60, 260, 280)
    clock = _Clock(steps, setting.cuda)
    model = _simclr(setting).to(setting.device)  # type: ignore[arg-type]
    config = METHODS["alignment_calibration"].config_class(
        output_dir=folder,
        use_cpu=not setting.cuda,
        bf16=setting.cuda,
        torch_compile=setting.compiled,
        per_device_train_batch_size=setting.pictures,
        max_steps=steps[-1],
        guard_steps=50,  # as in a run of 1,000 steps or more
        report_to="none",
        disable_tqdm=True,
    )
    trainer = METHODS["alignment_calibration"](
        model,
        config,
        {"retain": data.select(range(unlearn, len(data))), "unlearn": data.select(range(unlearn))},  # type: ignore[arg-type]
        processing_class=image_processor_of(VIEW_PRESETS["cifar"]),
        optimizers=(optimizer_of(model), None),
        callbacks=[clock],
    )
    started = time.perf_counter()
    trainer.train()
    (first, first_cpu), (last, last_cpu) = clock.read[steps[1]], clock.read[steps[2]]
    seconds, kernels = (last - first) / (steps[2] - steps[1]), clock.busy_seconds()
    note = f"{(last_cpu - first_cpu) / (last - first):.1f} processor cores busy (wanted: at most 2); "
    note += f"{setting.pictures / seconds:.0f} pictures/s; {clock.read[1][0] - started:.1f} s to the end of step 1"
    work = f"trainer.train(), SimCLR, a step{', compiled' * setting.compiled}; the ratio is the device's busy share"
    taken = [Measurement(seconds, 0.0)], [Measurement(kernels, 0.0)]
    yield Row.of(f"{work} (wanted: 0.8)", AC, "its kernels", *taken, note)


def checkpoint_evaluations(setting: Setting, _: str) -> Iterator[Row]:
    """The evaluation of a SimCLR checkpoint on 14,000 pictures with labels."""
    sizes = {"retain": 9_500, "unlearn": 1_000, "validation": 1_500, "test": 2_000}
    if setting.small:
        sizes = {name: size // 50 for name, size in sizes.items()}
    total = sum(sizes.values())
    model, data = _simclr(setting), as_dataset(random_pictures(total, 32))
    preprocessor = make_preprocessor(model, image_processor_of(VIEW_PRESETS["cifar"]), DataConfig())
    model.to(setting.device)  # type: ignore[arg-type]
    splits, labels, first, drawn = {}, {}, 0, np.random.default_rng(0)
    for name, size in sizes.items():
        splits[name] = EncodedSplit(data.select(range(first, first + size)), preprocessor)
        labels[name] = drawn.integers(0, 10, size)
        first += size
    judge = ImageViewEvaluator(splits, preprocessor, ClassLabels(labels))
    judge.evaluate(model)
    started = time.process_time()
    taken = [measure(setting.device, lambda: judge.evaluate(model), setting.clock) for _ in range(setting.repeats)]
    processor = (time.process_time() - started) / setting.repeats
    work, wanted = f"Evaluation of a SimCLR checkpoint, {total:,} pictures", [Measurement(WANTED_SECONDS, 0.0)]
    note = f"{processor:.1f} s of processor time"
    yield Row.of(work, "ours", "what is wanted on a GPU", taken, wanted * setting.repeats, note)
