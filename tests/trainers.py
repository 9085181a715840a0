"""Tiny encoders of every family in the library's own Trainers, and what the oracles need of a batch."""

import copy
from dataclasses import dataclass, fields

import numpy as np
import pytest
import torch
from datasets import DatasetDict

from hf_unlearn.data.config import DataConfig
from hf_unlearn.data.views import VIEW_PRESETS
from hf_unlearn.methods import METHODS
from hf_unlearn.models.image_processor import image_processor_of
from hf_unlearn.models.moco import MoCoConfig, MoCoModel
from hf_unlearn.models.simclr import SimCLRConfig, SimCLRModel

# As few layers as show what a method does: of pictures this small, each layer costs the same, and a ResNet-18 has 20.
BACKBONE = {
    "model_type": "resnet",
    "embedding_size": 4,
    "hidden_sizes": [4, 8],
    "depths": [1, 1],
    "layer_type": "basic",
}
VIEW_ENCODER = {"backbone_config": BACKBONE, "projection_dim": 8}
FAMILIES = {"clip": "cross_modal", "simclr": "two_view", "moco": "queue"}  # as the oracle calls them


@pytest.fixture(scope="session")
def splits(shapes):
    """40 retain, 10 unlearn and 22 validation rows."""
    names = {"retain": range(40), "unlearn": range(40, 50), "validation": range(50, 72)}
    return DatasetDict({name: shapes.select(rows) for name, rows in names.items()})


@pytest.fixture
def encoder(loaded_clip):
    """A function from a family to its model, with the same weights each time, and its processor."""

    def build(family):
        if family == "clip":
            return copy.deepcopy(loaded_clip)
        torch.manual_seed(0)
        model = (
            SimCLRModel(SimCLRConfig(**VIEW_ENCODER))
            if family == "simclr"
            else MoCoModel(MoCoConfig(**VIEW_ENCODER, queue_size=20))
        )
        return model, image_processor_of(VIEW_PRESETS["light"])

    return build


@pytest.fixture
def make_trainer(encoder, splits, tmp_path):
    """A function from a method, a family and settings to a Trainer on the splits."""

    def make(
        method,
        family="clip",
        train_dataset=splits,
        eval_dataset=None,
        trainer_class=None,
        given_model=None,
        peft_config=None,
        initial_model=None,
        **settings,
    ):
        trainer_class = trainer_class or METHODS[method]
        model, processor = encoder(family)
        model = given_model or model
        settings = {
            "output_dir": str(tmp_path / "out"),
            "report_to": "none",
            "use_cpu": True,
            **({} if family == "clip" else {"views": "light"}),
        } | settings
        of_data = {field.name: settings.pop(field.name) for field in fields(DataConfig) if field.name in settings}
        config = METHODS[method].config_class(disable_tqdm=True, **settings)
        return trainer_class(
            model,
            config,
            train_dataset,
            eval_dataset,
            processing_class=processor,
            peft_config=peft_config,
            data_config=DataConfig(**of_data),
            initial_model=initial_model,
        )

    return make


@dataclass(frozen=True)
class Quantities:
    """What an oracle needs, in float64: the family, unit elements, inverse temperature, membership and queue."""

    family: str
    x: np.ndarray
    y: np.ndarray
    scale: float
    unlearn: list[bool]
    queue: np.ndarray | None

    def __call__(self, oracle, *arguments):
        return oracle(self.family, self.x, self.y, self.scale, *arguments, queue=self.queue)


@pytest.fixture
def loss_of_batch():
    """A function that runs `compute_loss` in training mode on rows and also gives what an oracle needs of them."""

    def run(trainer, rows):
        batch = trainer.train_dataset.__getitems__(list(rows))
        trainer._step_seed = lambda: 7  # the same views for both passes
        model = trainer.model.train()
        with torch.no_grad():
            terms, unlearn = trainer.contrast(copy.deepcopy(model), batch)
        elements = [element.double().numpy() for element in (terms.x, terms.y)]
        queue = terms.queue.double().numpy() if hasattr(terms, "queue") else None
        family = FAMILIES[getattr(model.config, "model_type", "clip")]
        quantities = Quantities(family, *elements, terms.scale.item(), unlearn.tolist(), queue)
        return trainer.compute_loss(model, batch), quantities

    return run


def one_caption(splits: DatasetDict) -> DatasetDict:
    """Without a choice among captions, and without flips, nothing is drawn for a batch of pairs."""
    return splits.map(lambda row: {"captions": row["captions"][:1]}, load_from_cache_file=False)
