"""Class labels of the splits, for the linear probe and for zero-shot classification."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc
import torch
from datasets import ClassLabel, Dataset
from torch import Tensor
from transformers import PreTrainedModel

from hf_unlearn.data.columns import arrow_column
from hf_unlearn.data.folders import HOLDOUT
from hf_unlearn.data.labels import align_classes
from hf_unlearn.data.preprocessing import ImageTextPreprocessor
from hf_unlearn.embedding import BATCH
from hf_unlearn.errors import UserError, listed
from hf_unlearn.metrics.zero_shot import zero_shot
from hf_unlearn.models.contrastive import embed_texts, evaluation_mode
from hf_unlearn.runs.run_arguments import RunArguments

LABEL_COLUMNS = ("label", "category")


@dataclass(frozen=True, eq=False)
class ClassLabels:
    """Classes of every row of the four splits, for the linear probe, or why there are none.

    Attributes:
        of: Split to class numbers `[n]`; None where the probe has to be left out.
        reason: Why it has to be, a sentence.
        names: Of the classes, by number.
    """

    of: dict[str, npt.NDArray[np.int64]] | None
    reason: str = ""
    names: tuple[str, ...] = ()


def class_labels(splits: Mapping[str, Dataset]) -> ClassLabels:
    """Class labels of each split from its `label` (or OpenMoji's `category`) column, numbered alike in all of them.

    A probe on some of the rows would be another metric: where a row has no class, there are no labels at all, and the
    reason names split and number. Splits called `holdout_*` need none.
    """
    told = []
    splits = {name: split for name, split in splits.items() if not name.startswith(HOLDOUT)}
    for column in LABEL_COLUMNS:
        without = [name for name, split in splits.items() if column not in split.column_names]
        if len(without) == len(splits):
            continue
        if without:
            told.append(f"The column {column!r} is missing in {listed(without)}.")
            continue
        aligned = align_classes(splits, column)
        kinds = {name: split.features[column] for name, split in aligned.items()}
        unusable = [name for name, kind in kinds.items() if not isinstance(kind, ClassLabel)]
        if unusable:
            found = listed(sorted({str(getattr(kinds[name], "dtype", kinds[name])) for name in unusable}))
            told.append(f"The column {column!r} of {listed(unusable)} holds {found}, no classes.")
            continue
        numbers = {
            name: np.asarray(pc.fill_null(arrow_column(s, column), -1), np.int64).copy() for name, s in aligned.items()
        }
        unlabelled = {name: int((values < 0).sum()) for name, values in numbers.items() if (values < 0).any()}
        if not unlabelled:
            names = next(iter(aligned.values())).features[column].names
            return ClassLabels(numbers, names=tuple(names))
        counts = ", ".join(f"{count:,} of {len(numbers[name]):,} in {name}" for name, count in unlabelled.items())
        told.append(f"The column {column!r} has rows without a class ({counts}).")
    return ClassLabels(None, " ".join(told) or "No label column in the data (--label_column).")


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
    def of(cls, labels: ClassLabels, arguments: RunArguments) -> "ZeroShotTask | None":
        """What `prompt_templates` asks for; None where it is unset.

        Raises:
            UserError: rows have no classes, or there is not one name a class.
        """
        if not arguments.prompt_templates:
            return None
        if labels.of is None:
            raise UserError(f"prompt_templates ask for zero-shot accuracy, which needs classes. {labels.reason}")
        names = labels.names if arguments.class_names is None else tuple(arguments.class_names)
        if len(names) != len(labels.names):
            raise UserError(
                f"class_names are {len(names)}, and the data has {len(labels.names)} classes; name each of them once"
            )
        prompts = tuple(template.format(name) for name in names for template in arguments.prompt_templates)
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
