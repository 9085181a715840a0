"""Small encoders of every family, whose folders are checked around each test, and trainers on them."""

import copy
import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, DatasetDict
from folders import BASE_MODELS, watched
from trainers import BACKBONE

from hf_unlearn.data.config import DataConfig
from hf_unlearn.data.encoded import EncodedSplit
from hf_unlearn.data.views import VIEW_PRESETS
from hf_unlearn.methods import METHODS
from hf_unlearn.models.image_processor import image_processor_of
from hf_unlearn.models.loading import load_encoder
from hf_unlearn.models.moco import MoCoConfig, MoCoModel
from hf_unlearn.models.simclr import SimCLRConfig, SimCLRModel
from hf_unlearn.training.rows import make_preprocessor
from hf_unlearn.training.trainer import UnlearningTrainer

FAMILIES = ("clip", "simclr", "moco")
# Wide, so that the weights are most of a checkpoint, of which a disk has room for a part.
TINY = {"backbone_config": {**BACKBONE, "hidden_sizes": [16, 128]}, "projection_dim": 16}


def weights(model: torch.nn.Module) -> str:
    """Hash of every parameter and buffer of a model, bit for bit."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory, tiny_clip: Path) -> dict[str, Path]:
    """A folder with a model and its processor per family."""
    root = tmp_path_factory.mktemp("fault-bases")
    torch.manual_seed(0)
    processor = image_processor_of(VIEW_PRESETS["light"].__class__(size=16))
    models = {"simclr": SimCLRModel(SimCLRConfig(**TINY)), "moco": MoCoModel(MoCoConfig(**TINY, queue_size=24))}
    for name, model in models.items():
        model.save_pretrained(root / name)
        processor.save_pretrained(root / name)
    return {"clip": tiny_clip, **{name: watched(root / name) for name in models}}


@pytest.fixture(autouse=True)
def every_test_has_bases(bases: dict[str, Path]) -> None:
    """So that the check of base models after every test (`tests/conftest.py`) sees these folders in all of them."""
    assert set(bases.values()) <= set(BASE_MODELS)


@pytest.fixture(scope="session")
def splits(shapes: Dataset) -> DatasetDict:
    """40 rows to retain, 8 to unlearn, 24 that were never trained on."""
    parts = {"retain": range(40), "unlearn": range(40, 48), "validation": range(48, 72)}
    return DatasetDict({name: shapes.select(rows) for name, rows in parts.items()})


@pytest.fixture(scope="session")
def loaded(bases: dict[str, Path]) -> dict[str, tuple]:
    """Each base model and its processor, loaded once; every trainer takes a copy."""
    return {family: load_encoder(str(folder)) for family, folder in bases.items()}


def reading(family: str) -> DataConfig:
    """How a family reads the rows."""
    return DataConfig() if family == "clip" else DataConfig(views="light")


@pytest.fixture(scope="session")
def encoded(loaded: dict[str, tuple], splits: DatasetDict) -> dict[str, dict[str, EncodedSplit]]:
    """The splits as each family takes them."""
    inputs = {family: make_preprocessor(*pair, reading(family)) for family, pair in loaded.items()}
    return {f: {name: EncodedSplit(rows, inputs[f]) for name, rows in splits.items()} for f in loaded}


@pytest.fixture(scope="session")
def trainer_in(
    loaded: dict[str, tuple], encoded: dict[str, dict[str, EncodedSplit]]
) -> Callable[..., UnlearningTrainer]:
    """Build the trainer of a method on a family, from the base model, with its checkpoints in a folder."""

    def build(
        folder: Path, family: str, method: str, data: Any = None, evaluated: Any = None, **options: Any
    ) -> UnlearningTrainer:
        model, processor = copy.deepcopy(loaded[family])
        given = {"output_dir": str(folder), "num_train_epochs": 2, "per_device_train_batch_size": 16}
        given |= {"use_cpu": True, "disable_tqdm": True, "report_to": "none"}
        config = METHODS[method].config_class(**{**given, **options})
        how = {"processing_class": processor, "data_config": reading(family)}
        return METHODS[method](model, config, data or encoded[family], evaluated, **how)

    return build


@pytest.fixture
def trainer(trainer_in: Callable[..., UnlearningTrainer], tmp_path: Path) -> Callable[..., UnlearningTrainer]:
    """The same, with its checkpoints in the test's folder."""
    return partial(trainer_in, tmp_path / "out")
