"""Make a small twin of SALMUBench: fictitious persons, their faces drawn, attributes as captions, models as OpenCLIP's.

    pip install "open_clip_torch>=3"
    python recipes/salmu_twin.py runs/salmu_twin
    hf-unlearn unlearn --config recipes/salmu_twin.yaml

The folder holds the data, and three models of one start and size that were trained from scratch. Compromised saw all
splits but validation and test. Clean saw retain_synth alone, as in SALMUBench, so it does not know the holdouts either.
Exact saw everything but forget: what retraining without the request, and nothing else, gives.
"""

import argparse
import json
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset, DatasetDict, concatenate_datasets
from datasets import Image as ImageFeature
from PIL import Image, ImageDraw
from safetensors.torch import save_file

from hf_unlearn.cli.guard import guarded
from hf_unlearn.data.config import DataConfig
from hf_unlearn.data.encoded import EncodedSplit
from hf_unlearn.errors import UserError
from hf_unlearn.methods.retrain import RetrainConfig, RetrainTrainer
from hf_unlearn.models.checkpoint_forms import save_encoder
from hf_unlearn.models.loading import load_encoder
from hf_unlearn.training.rows import make_preprocessor

SIDE = 32
FIRST = ["Ada", "Bo", "Cleo", "Dora", "Emil", "Finn", "Greta", "Hugo", "Ines", "Jonas", "Kira", "Lars"]
LAST = ["Moss", "Quill", "Rook", "Stone", "Tarn", "Vale", "Birch", "Crane", "Dunn", "Fell"]
MOST = len(FIRST) * len(LAST) * 3 // 5  # two thirds as many again are new, for validation and test
TOWNS = ["Lindham", "Osterby", "Corrow", "Vell", "Marn", "Thornau"]
SKIN = ["#f2d6c0", "#d8a47f", "#a86f4a", "#6b4229"]
HAIR = ["#1f1a17", "#6b3e1f", "#c9a24b", "#b5b5b5", "#a3341f"]
MODEL = {
    "embed_dim": 32,
    "vision_cfg": {"layers": 2, "width": 64, "head_width": 16, "patch_size": 8, "image_size": SIDE},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 64, "heads": 4, "layers": 2},
}


PHONES = ["{} has the phone number {}", "call {} at {}", "the phone of {} is {}", "to reach {} dial {}"]
HOMES = ["{} lives in {}", "the home of {} is in {}", "{} is a resident of {}", "find {} in {}"]
SEEN = {  # what each model was trained on
    "compromised": ["retain_synth", "forget", "holdout_identity", "holdout_association"],
    "clean": ["retain_synth"],
    "exact": ["retain_synth", "holdout_identity", "holdout_association"],
}


def main() -> None:
    """Draw the data and train the models."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where to make the twin; it must not exist yet")
    parser.add_argument("--persons", type=int, default=60, help="persons in retain, forget and the holdouts together")
    parser.add_argument("--shots", type=int, default=12, help="pictures of each person in a split")
    parser.add_argument(
        "--first", type=int, default=0, help="the first person's number; others have other faces and facts"
    )
    parser.add_argument("--epochs", type=int, default=60, help="epochs of each model")
    given = parser.parse_args()
    if find_spec("open_clip") is None:
        raise UserError('the models are in OpenCLIP\'s form; pip install "open_clip_torch>=3"')
    if not 3 <= given.persons <= MOST:
        raise UserError(f"--persons must be 3 to {MOST}, not {given.persons}: there are no more names")
    given.folder.mkdir(parents=True)
    data = make_data(given.persons, given.shots, given.first)
    data.save_to_disk(given.folder / "data")
    make_models(data, given.folder, given.epochs)
    print(", ".join(f"{name} {len(rows):,}" for name, rows in data.items()))


def face(person: int, shot: int) -> Image.Image:
    """A person's features are drawn by the person's number; where and how large the face is, by the shot's."""
    who, how = np.random.default_rng(person), np.random.default_rng([person, shot])
    image = Image.new("RGB", (SIDE, SIDE), tuple(int(v) for v in how.integers(150, 256, 3)))
    pen = ImageDraw.Draw(image)
    x, y = (SIDE / 2 + how.uniform(-2, 2) for _ in range(2))
    wide, tall = who.uniform(7, 10), who.uniform(9, 12)
    hair, skin = HAIR[who.integers(len(HAIR))], SKIN[who.integers(len(SKIN))]
    pen.ellipse([x - wide - 2, y - tall - 3, x + wide + 2, y + tall * who.uniform(-0.2, 0.9)], fill=hair)
    pen.ellipse([x - wide, y - tall, x + wide, y + tall], fill=skin)
    eyes, glasses = who.uniform(3, 5), who.random() < 0.4
    for at in (x - eyes, x + eyes):
        pen.ellipse([at - 1, y - 3, at + 1, y - 1], fill="black")
        if glasses:
            pen.ellipse([at - 3, y - 5, at + 3, y + 1], outline="black")
    mouth = who.uniform(2, 5)
    pen.line([x - mouth, y + 5, x + mouth, y + 5 + who.integers(-1, 2)], fill="#7d1f1f", width=1)
    return image


def _name(person: int) -> str:
    return f"{FIRST[person % len(FIRST)]} {LAST[person // len(FIRST) % len(LAST)]}"


def phone(person: int, shot: int) -> str:
    """A person's phone number, told in one of several ways."""
    number = np.random.default_rng([7, person]).integers(100, 999)
    return PHONES[shot % len(PHONES)].format(_name(person), number)


def home(person: int, shot: int) -> str:
    """A person's town, told in one of several ways."""
    town = TOWNS[np.random.default_rng([8, person]).integers(len(TOWNS))]
    return HOMES[shot % len(HOMES)].format(_name(person), town)


def _rows(persons: Iterable[int], say: Callable[[int, int], str], shots: range) -> Dataset:
    pairs = [(person, shot) for person in persons for shot in shots]
    return Dataset.from_dict(
        {
            "image": [face(*pair) for pair in pairs],
            "caption": [say(*pair) for pair in pairs],
            "id": [f"{person}-{say.__name__}-{shot}" for person, shot in pairs],
        }
    ).cast_column("image", ImageFeature())


def make_data(persons: int, shots: int, number: int) -> DatasetDict:
    """Phones of the first third are to be forgotten; retain has homes of the others; holdouts have new pictures."""
    third = persons // 3
    first, others = range(number, number + third), range(number + third, number + persons)
    new = range(number + persons, number + persons + 2 * third)
    return DatasetDict(
        retain_synth=_rows(others, home, range(shots)),
        forget=_rows(first, phone, range(shots)),
        holdout_identity=_rows(others[:third], phone, range(shots, 2 * shots)),
        holdout_association=_rows(first, home, range(2 * shots, 3 * shots)),
        validation=_rows(new[:third], phone, range(shots)),
        test=_rows(new[third:], phone, range(shots)),
    )


def make_models(data: DatasetDict, folder: Path, epochs: int) -> None:
    """Train each model on what it may see, from one start, by the settings that the small CLIP of OpenMoji has."""
    import open_clip

    untrained = folder / "untrained"
    untrained.mkdir()
    preprocess = {"size": SIDE, "mean": [0.5] * 3, "std": [0.25] * 3}
    (untrained / "open_clip_config.json").write_text(json.dumps({"model_cfg": MODEL, "preprocess_cfg": preprocess}))
    torch.manual_seed(0)
    weights = open_clip.CLIP(**MODEL).state_dict()
    save_file({name: value.contiguous() for name, value in weights.items()}, untrained / "open_clip_model.safetensors")
    for name, splits in SEEN.items():
        model, processor = load_encoder(str(untrained))
        rows = concatenate_datasets([data[split] for split in splits]).rename_column("caption", "captions")
        encoded = EncodedSplit(rows, make_preprocessor(model, processor, DataConfig()), 2**30)
        config = RetrainConfig(
            output_dir=str(folder / name),
            num_train_epochs=epochs,
            learning_rate=1e-3,
            weight_decay=0.1,
            per_device_train_batch_size=128,
            use_cpu=True,
            report_to="none",
            logging_strategy="no",
        )
        trainer = RetrainTrainer(model, config, {"retain": encoded}, processing_class=processor)
        trainer.train()
        (folder / name).mkdir(exist_ok=True)
        save_encoder(trainer.model, processor, folder / name, "open_clip")


if __name__ == "__main__":
    guarded(main)
