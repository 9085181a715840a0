"""The prompts of a run's classes, embedded by the encoder that is measured."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import PreTrainedModel

from hf_unlearn.data.config import DataConfig
from hf_unlearn.data.preprocessing import ImageTextPreprocessor
from hf_unlearn.embedding import BATCH
from hf_unlearn.errors import UserError
from hf_unlearn.metrics.zero_shot import zero_shot
from hf_unlearn.models.contrastive import embed_texts, evaluation_mode
from hf_unlearn.runs.class_labels import ClassLabels


@dataclass(frozen=True, eq=False)
class ZeroShotTask:
    """Classes of every row, and prompts that name them.

    Attributes:
        labels: split to class numbers `[n]`.
        prompts: one a class and template, class after class.
        classes: how many there are.
    """

    labels: Mapping[str, npt.NDArray[np.int64]]
    prompts: tuple[str, ...]
    classes: int

    @classmethod
    def of(cls, labels: ClassLabels, data: DataConfig) -> "ZeroShotTask | None":
        """What `prompt_templates` asks for; None where it is unset.

        Raises:
            UserError: rows have no classes, or there is not one name a class.
        """
        if not data.prompt_templates:
            return None
        if labels.of is None:
            raise UserError(f"prompt_templates ask for zero-shot accuracy, which needs classes. {labels.reason}")
        names = labels.names if data.class_names is None else tuple(data.class_names)
        if len(names) != len(labels.names):
            raise UserError(
                f"class_names are {len(names)}, and the data has {len(labels.names)} classes; name each of them once"
            )
        prompts = tuple(template.format(name) for name in names for template in data.prompt_templates)
        return cls(labels.of, prompts, len(names))

    @torch.no_grad()
    def embed(self, model: PreTrainedModel, preprocessor: ImageTextPreprocessor) -> Tensor:
        """`[classes, templates, d]` embeddings of the prompts."""
        parts = []
        with evaluation_mode(model):
            for start in range(0, len(self.prompts), BATCH):
                tokens = preprocessor.tokenise(list(self.prompts[start : start + BATCH]))
                parts.append(embed_texts(model, **{n: value.to(model.device) for n, value in tokens.items()}).float())
        embeds = torch.cat(parts)
        return embeds.view(self.classes, -1, embeds.shape[1])

    def accuracy(self, images: Tensor, prompts: Tensor, split: str) -> dict[str, float]:
        """Its accuracy on a split's pictures, as a metric; nothing on splits without classes."""
        if split not in self.labels:
            return {}
        return {f"zero_shot_{split}": zero_shot(images, prompts, self.labels[split]).accuracy}
