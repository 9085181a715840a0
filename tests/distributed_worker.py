"""What every process of a launch computes for test_distributed.py; the first one writes the results.

Each check runs the library's own Trainer, so the model is wrapped for data-parallel training and batches are dealt out
by the real data loader. The global batch is fixed: with R processes, process r gets the r-th part of the same 16 rows.
"""

import gc
import multiprocessing
import sys
import zlib
from functools import cache
from typing import ClassVar

import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState, GradientState, PartialState
from conftest import COLOURS, SHAPES, draw
from datasets import Dataset, Features, Image, List, Value, load_dataset
from peft import LoraConfig
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from torch.utils.data import Sampler
from transformers import CLIPConfig, CLIPModel, ResNetConfig, SiglipConfig, SiglipModel, TrainerCallback

from hf_unlearn.data.config import DataConfig
from hf_unlearn.data.encoded import EncodedSplit
from hf_unlearn.data.preprocessing import ImageTextPreprocessor, ImageViewPreprocessor
from hf_unlearn.data.views import VIEW_PRESETS
from hf_unlearn.distributed import world_size
from hf_unlearn.embedding import embed_split
from hf_unlearn.methods import METHODS, alignment_calibration
from hf_unlearn.models.contrastive import embed_images
from hf_unlearn.models.image_processor import image_processor_of
from hf_unlearn.models.moco import MoCoConfig, MoCoModel
from hf_unlearn.models.simclr import SimCLRConfig, SimCLRModel
from hf_unlearn.models.small_clip import MAX_LENGTH, build_small_clip
from hf_unlearn.runs.evaluation import ImageTextEvaluator, ImageViewEvaluator

BATCH = 16
RETAIN = 24  # rows of retain; the next 16 are unlearn, the rest validation
# Positions of unlearn rows differ between the parts of a batch; of four parts, the last two have none.
UNEVEN = [24, 25, 26, 0, 27, 1, 2, 28, *range(3, 11)]
PAIRED = [24, 0, 25, 1, 26, 2, 27, 3, 28, 4, 29, 5, 30, 6, 31, 7]  # two in every part
FAMILIES = ("clip", "simclr", "moco")


class InOrder(Sampler[int]):
    """The same batch at every step."""

    def __init__(self, rows, times):
        self.order = list(rows) * times

    def __len__(self):
        return len(self.order)

    def __iter__(self):
        return iter(self.order)


class ViewsByPicture(ImageViewPreprocessor):
    """The library's views, seeded by the picture, so that they do not depend on the process a picture is on."""

    drawn: ClassVar[dict[int, torch.Tensor]] = {}

    def batch(self, encoded, seed):
        return {"pixel_values": torch.cat([self.of(picture) for picture in encoded["pixels"]])}

    def of(self, picture):
        seed = zlib.crc32(picture.numpy().tobytes())
        if seed not in self.drawn:
            self.drawn[seed] = self.views(picture[None], seed=seed).double()
        return self.drawn[seed]


class FirstGradient(TrainerCallback):
    """Keeps the gradients of the first step."""

    gradients = None

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if self.gradients is None:
            named = ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)
            self.gradients = {name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in named}


def neighbours(mask):
    """A derangement that pairs the first with the second member, the third with the fourth, ..."""
    order, members = torch.arange(len(mask)), mask.nonzero().flatten()
    order[members] = members.view(-1, 2).flip(1).flatten()
    return order


@cache
def clip_processor():
    """Made once, before the processes part; and the random state then, which the weights are drawn from."""
    torch.manual_seed(0)
    _, processor = build_small_clip([caption for captions in ROWS["captions"] for caption in captions], image_size=16)
    return processor, torch.get_rng_state()


def build(family):
    """A tiny encoder with the same weights in every process, and its processor."""
    torch.manual_seed(0)
    if family in ("simclr", "moco"):
        backbone = ResNetConfig(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic")
        small = {"backbone_config": backbone, "projection_dim": 8}
        model = (
            SimCLRModel(SimCLRConfig(**small)) if family == "simclr" else MoCoModel(MoCoConfig(**small, queue_size=20))
        )
        return model, image_processor_of(VIEW_PRESETS["light"])
    processor, state = clip_processor()
    torch.set_rng_state(state)
    tokenizer = processor.tokenizer
    common = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 1}
    text = {**common, "vocab_size": len(tokenizer), "max_position_embeddings": MAX_LENGTH}
    vision = {**common, "image_size": 16, "patch_size": 8}
    if family == "siglip":
        return SiglipModel(SiglipConfig(text_config=text, vision_config=vision)), processor
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = CLIPConfig(text_config={**text, **ends}, vision_config=vision, projection_dim=16)
    return CLIPModel(config), processor


def make_trainer(method, family, rows, batch=BATCH, steps=2, peft_config=None, splits=None, **settings):
    """A Trainer of two steps over the same global batch."""
    model, processor = build(family)
    given = {
        "output_dir": f"{sys.argv[1]}/out",
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "optim": "sgd",
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "max_grad_norm": 0.0,
        "per_device_train_batch_size": batch // world_size(),
        "per_device_eval_batch_size": 16 // world_size(),
        "max_steps": steps,
        "logging_strategy": "steps",
        "logging_steps": 1,
    }
    config = METHODS[method].config_class(**{**given, **settings})
    trainer_class = METHODS[method]
    if rows is not None:
        sampler = {"_get_train_sampler": lambda self, dataset=None: InOrder(rows, steps)}
        trainer_class = type(trainer_class.__name__, (trainer_class,), sampler)
    light = {"views": "light"} if family in ("simclr", "moco") else {}
    trainer = trainer_class(
        model,
        config,
        {name: (splits or SPLITS[family])[name] for name in ("retain", "unlearn", "validation")},
        eval_dataset=SPLITS[family]["validation"],
        processing_class=processor,
        peft_config=peft_config,
        data_config=DataConfig(**light, retain_rows=None if splits is None else RETAIN),
    )
    if family in ("simclr", "moco"):
        for model in (trainer.model, getattr(trainer, "teacher", trainer.model)):
            model.double()  # so that processes are not told apart by the rounding of a ResNet's batch norms
        trainer.preprocessor = ViewsByPicture(processor, VIEW_PRESETS["light"])
    return trainer


def train(method, family, rows, **settings):
    """Logged terms and gradient of the first step, loss of the last one, and the buffers after it."""
    trainer = make_trainer(method, family, rows, **settings)
    trainer.model.eval()  # as `from_pretrained` leaves it
    seen = FirstGradient()
    trainer.add_callback(seen)
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    terms = {name: value for name, value in logs[0].items() if name not in ("epoch", "step", "learning_rate")}
    buffers = {name: value for name, value in trainer.model.named_buffers() if value.is_floating_point()}
    return {"terms": terms, "last_loss": logs[-1]["loss"], "gradients": seen.gradients, "buffers": buffers}


def training_cases():
    """Every method, and on every family what is gathered there; on four processes, where parts have no unlearn rows."""
    unlearn = range(16)
    if world_size() > 2:
        for family in FAMILIES:
            yield f"{family} alignment_calibration", train("alignment_calibration", family, UNEVEN, beta=3.0)
        for method in ("neg_grad", "targeted_calibration", "scrub"):
            yield f"clip {method}", train(method, "clip", UNEVEN)
        yield "clip npo", train("npo", "clip", UNEVEN, beta=0.5)
        yield "clip neg_grad reference", train("neg_grad", "clip", UNEVEN, preset="reference")
        return
    yield "clip retrain", train("retrain", "clip", range(BATCH))
    yield "clip gradient_ascent", train("gradient_ascent", "clip", unlearn)
    yield "clip l1_sparsity", train("l1_sparsity", "clip", range(BATCH), l1_lambda=1e-3)
    for family in FAMILIES:
        yield f"{family} fine_tune", train("fine_tune", family, range(BATCH))
        yield f"{family} neg_grad", train("neg_grad", family, UNEVEN)
        yield f"{family} neg_grad reference", train("neg_grad", family, UNEVEN, preset="reference")
        yield f"{family} alignment_calibration", train("alignment_calibration", family, UNEVEN, beta=3.0)
        yield f"{family} targeted_calibration", train("targeted_calibration", family, UNEVEN)
        if family != "moco":
            lora = LoraConfig(r=4)
            yield (
                f"{family} alignment_calibration lora",
                train("alignment_calibration", family, UNEVEN, beta=3.0, peft_config=lora),
            )
        yield (
            f"{family} alignment_calibration reference",
            train("alignment_calibration", family, PAIRED, preset="reference", beta=12.0),
        )
    for family in ("clip", "moco"):
        yield f"{family} npo", train("npo", family, UNEVEN, beta=0.5)
    for family in ("clip", "simclr"):
        yield f"{family} scrub", train("scrub", family, UNEVEN)
    yield "clip alignment_calibration level", train("alignment_calibration", "clip", UNEVEN, preset="level")
    yield "clip task_vector", train("task_vector", "clip", unlearn)
    yield "clip saliency", train("neg_grad", "clip", UNEVEN, saliency_share=0.3)
    yield "siglip alignment_calibration", train("alignment_calibration", "siglip", UNEVEN)


def chunked_cases():
    """A batch of 2,048 at once and in chunks of 64, on one and two processes."""
    if world_size() > 2:
        return
    rows = [row % RETAIN for row in range(2048)]
    for name, chunk in (("whole", None), ("chunks", 64)):
        yield name, train("fine_tune", "clip", rows, batch=2048, steps=1, forward_chunk_size=chunk)


def edits():
    """The weights after methods that make no steps; batches of 16 rows, the last of retain filled up."""
    results = {}
    for method, settings in (("selective_synaptic_dampening", {"alpha": 1.2}), ("slug", {"target_cosine": -0.5})):
        trainer = make_trainer(method, "clip", None, **settings)
        if method == "slug":
            trainer.args.target_cosine = trainer._cosine(trainer._unlearn) - 0.05
        trainer.train()
        results[method] = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    return results


def orders():
    """Which rows this process trains on in two epochs of the library's own sampler."""
    trainer = make_trainer("neg_grad", "clip", None)
    loader = trainer.get_train_dataloader()
    epochs = []
    for epoch in range(2):
        loader.set_epoch(epoch)
        epochs.append([batch["index"].tolist() for batch in trainer.accelerator.prepare(loader)])
    long = make_trainer("neg_grad", "clip", None, max_steps=-1, num_train_epochs=1.5, gradient_accumulation_steps=2)
    *_, steps = long.set_initial_training_values(long.args, long.get_train_dataloader())
    foreseen = long.args.updates(RETAIN, 40 - RETAIN)
    return {"epochs": epochs, "view_seed": trainer._step_seed(), "updates": (foreseen, steps)}


def evaluations():
    """Metrics of both evaluators, the evaluation loss, and a pass over a split in small batches."""
    metrics = {}
    for family, evaluator_class in (("clip", ImageTextEvaluator), ("moco", ImageViewEvaluator)):
        model, _ = build(family)
        splits = SPLITS[family]
        preprocessor = splits["retain"].preprocessor
        evaluator = evaluator_class({**splits, "retain": splits["all"], "test": splits["validation"]}, preprocessor)
        metrics[family] = evaluator.evaluate(model).metrics

    def embed(encoded, number):
        pixels = preprocessor.normalise(encoded["pixels"])
        return embed_images(model, pixels), torch.full((len(pixels),), number)

    features, numbers = embed_split(model, splits["all"], embed, range(3, 50), batch_size=5)
    losses = {family: make_trainer("fine_tune", family, None).evaluate()["eval_loss"] for family in FAMILIES}
    return {"metrics": metrics, "features": features, "numbers": numbers, "losses": losses}


def stream_shares():
    """What two processes see of a retain stream in two shards, and the steps and weights that they end with."""
    if world_size() != 2:
        return None
    shards = [f"{sys.argv[1]}/{number}.parquet" for number in (0, 1)]
    splits = {**SPLITS["clip"], "retain": load_dataset("parquet", data_files=shards, split="train", streaming=True)}
    trainer = make_trainer("neg_grad", "clip", None, splits=splits, max_steps=-1, num_train_epochs=1)
    pixels = [batch["pixels"][~batch["is_unlearn"]] for batch in trainer.get_train_dataloader()]
    trainer.train()
    weights = [parameter.detach().sum().item() for parameter in trainer.model.parameters()]
    return {"pixels": pixels, "steps": trainer.state.global_step, "weights": weights}


def drawn_shapes():
    """72 different pictures with a caption each, so that nothing is drawn for a batch of pairs."""
    rows = [(colour, shape, size) for size in range(3, 7) for colour in COLOURS for shape in SHAPES]
    columns = {"image": [draw(*row) for row in rows], "captions": [[f"a {c} {s} of size {z}"] for c, s, z in rows]}
    return Dataset.from_dict(columns, features=Features(image=Image(), captions=List(Value("string"))))


def encode(family):
    _, processor = build(family)
    preprocessor = (
        ImageViewPreprocessor(processor, VIEW_PRESETS["light"])
        if family in ("simclr", "moco")
        else ImageTextPreprocessor(processor, MAX_LENGTH)
    )
    rows = {"retain": range(RETAIN), "unlearn": range(RETAIN, 40), "validation": range(40, 56), "all": range(72)}
    return {name: EncodedSplit(ROWS.select(places), preprocessor) for name, places in rows.items()}


def own_process(function, *arguments):
    """Run a function in a fork of this process, where nothing is imported anew, as if Accelerate had not been used."""

    def work():
        for state in (GradientState, AcceleratorState, PartialState):
            state._reset_state()
        gc.freeze()  # every Trainer collects garbage, and spends seconds in total on looking through the libraries
        function(*arguments)

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join(600)
    process.kill()  # which a process that has ended does not feel; one that hangs would be waited for
    process.join()
    assert process.exitcode == 0


def run(folder):
    """Every check, in every process."""
    torch.set_num_threads(1)
    PartialState(cpu=True)  # joins the processes
    alignment_calibration.derangement = neighbours
    results = {
        "training": dict(training_cases()),
        "chunked": dict(chunked_cases()),
        "evaluation": evaluations(),
        "edits": edits(),
    }
    own = {"world_size": dist.get_world_size(), "orders": orders(), "stream": stream_shares()}
    ranks = [None] * world_size()
    dist.all_gather_object(ranks, own)
    if dist.get_rank() == 0:
        torch.save({**results, "ranks": ranks}, f"{folder}/{world_size()}.pt")
    dist.destroy_process_group()


def launch(check, processes):
    """Run a check in so many processes, as torchrun would.

    They are forked, so that the libraries are imported once instead of in every one.
    """
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",  # any free port, so that launches side by side do not meet
        start_method="fork",
        max_restarts=0,
    )
    elastic_launch(config, check)(sys.argv[1])


def main(folder):
    """Every check in one, two and four processes; what they compute is written to a folder."""
    global ROWS, SPLITS
    sys.argv = [__file__, str(folder)]
    ROWS = drawn_shapes()
    SPLITS = {family: encode(family) for family in (*FAMILIES, "siglip")}
    for number in (0, 1):
        half = RETAIN // 2
        ROWS.select(range(half * number, half * number + half)).to_parquet(f"{folder}/{number}.parquet")
    for processes in (1, 2, 4):
        launch(run, processes)
