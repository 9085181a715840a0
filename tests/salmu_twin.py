"""A small twin of SALMUBench: fictitious persons, faces drawn, attributes as captions, two models as OpenCLIP's."""

import json
from pathlib import Path

import numpy as np
import open_clip
import torch
from datasets import Dataset, DatasetDict, concatenate_datasets
from datasets import Image as ImageFeature
from PIL import Image, ImageDraw
from safetensors.torch import save_file

from hf_unlearn.data.config import DataConfig
from hf_unlearn.data.encoded import EncodedSplit
from hf_unlearn.methods.retrain import RetrainConfig, RetrainTrainer
from hf_unlearn.models.checkpoint_forms import save_encoder
from hf_unlearn.models.loading import load_encoder
from hf_unlearn.training.rows import make_preprocessor

SIDE = 32
FIRST = ["Ada", "Bo", "Cleo", "Dora", "Emil", "Finn", "Greta", "Hugo", "Ines", "Jonas", "Kira", "Lars"]
LAST = ["Moss", "Quill", "Rook", "Stone", "Tarn", "Vale"]
TOWNS = ["Lindham", "Osterby", "Corrow", "Vell", "Marn", "Thornau"]
SKIN = ["#f2d6c0", "#d8a47f", "#a86f4a", "#6b4229"]
HAIR = ["#1f1a17", "#6b3e1f", "#c9a24b", "#b5b5b5", "#a3341f"]
MODEL = {
    "embed_dim": 32,
    "vision_cfg": {"layers": 2, "width": 64, "head_width": 16, "patch_size": 8, "image_size": SIDE},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 64, "heads": 4, "layers": 2},
}


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


def _phone(person: int) -> str:
    return f"{_name(person)} has the phone number {np.random.default_rng([7, person]).integers(100, 999)}"


def _home(person: int) -> str:
    return f"{_name(person)} lives in {TOWNS[np.random.default_rng([8, person]).integers(len(TOWNS))]}"


def _rows(persons: range, say, shots: range) -> Dataset:
    pairs = [(person, shot) for person in persons for shot in shots]
    return Dataset.from_dict(
        {
            "image": [face(*pair) for pair in pairs],
            "caption": [say(person) for person, _ in pairs],
            "id": [f"{person}-{say.__name__}-{shot}" for person, shot in pairs],
        }
    ).cast_column("image", ImageFeature())


def make_data(persons: int = 12, shots: int = 3) -> DatasetDict:
    """Phones of the first third are to be forgotten; retain has homes of the others; held-out pairs are new faces."""
    third = persons // 3
    first, second = range(third), range(third, 2 * third)
    new = range(persons, persons + 2 * third)
    return DatasetDict(
        retain_synth=_rows(range(third, persons), _home, range(shots)),
        forget=_rows(first, _phone, range(shots)),
        holdout_identity=_rows(second, _phone, range(shots, 2 * shots)),
        holdout_association=_rows(first, _home, range(2 * shots, 3 * shots)),
        validation=_rows(new[:third], _phone, range(shots)),
        test=_rows(new[third:], _phone, range(shots)),
    )


def make_models(data: DatasetDict, folder: Path, **training) -> tuple[Path, Path]:
    """Compromised saw everything but the held-out pairs, Clean nothing that names a phone or a forgotten person."""
    untrained = folder / "untrained"
    untrained.mkdir(parents=True)
    preprocess = {"size": SIDE, "mean": [0.5] * 3, "std": [0.25] * 3}
    (untrained / "open_clip_config.json").write_text(json.dumps({"model_cfg": MODEL, "preprocess_cfg": preprocess}))
    torch.manual_seed(0)
    weights = open_clip.CLIP(**MODEL).state_dict()
    save_file({name: value.contiguous() for name, value in weights.items()}, untrained / "open_clip_model.safetensors")
    seen = ["retain_synth", "forget", "holdout_identity", "holdout_association"]
    folders = []
    for name, splits in (("compromised", seen), ("clean", seen[:1])):
        model, processor = load_encoder(str(untrained))
        rows = concatenate_datasets([data[split] for split in splits]).rename_column("caption", "captions")
        encoded = EncodedSplit(rows, make_preprocessor(model, processor, DataConfig()), 2**30)
        config = RetrainConfig(
            output_dir=str(folder / "out"), use_cpu=True, report_to="none", disable_tqdm=True, **training
        )
        trainer = RetrainTrainer(model, config, {"retain": encoded}, processing_class=processor)
        trainer.train()
        (folder / name).mkdir()
        save_encoder(trainer.model, processor, folder / name, "open_clip")
        folders.append(folder / name)
    return folders[0], folders[1]
