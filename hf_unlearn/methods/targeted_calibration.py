"""Targeted Calibration: Alignment Calibration that knows where to stop."""

import logging
import time
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, fields, replace
from functools import cached_property
from math import inf
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PrinterCallback
from transformers.trainer_utils import TrainOutput

from hf_unlearn.data.config import setting
from hf_unlearn.data.encoded import EncodedSplit
from hf_unlearn.data.preprocessing import ImageTextPreprocessor, ImageViewPreprocessor
from hf_unlearn.data.streaming import StreamedBatches
from hf_unlearn.distributed import world_size
from hf_unlearn.errors import UserError
from hf_unlearn.losses import ContrastiveTerms, calibration_distances, retain_info_nce
from hf_unlearn.losses.functional import shares
from hf_unlearn.losses.terms import constant
from hf_unlearn.methods.fine_tune import FineTuneConfig, FineTuneTrainer
from hf_unlearn.models.adapters import is_adapted, merged
from hf_unlearn.models.contrastive import contrastive_terms, is_dual_encoder, unwrap
from hf_unlearn.models.towers import freeze_tower
from hf_unlearn.models.weights import is_copy
from hf_unlearn.records.method_description import INFO_NCE, PAPER_CITATION, RETAIN, MethodDescription
from hf_unlearn.training.batch import TrainingBatch
from hf_unlearn.training.config import StartingPoint, Training, UnlearningConfig
from hf_unlearn.training.earlier_requests import HELD_WEIGHT
from hf_unlearn.training.features import FeatureEncoder, load_features
from hf_unlearn.training.loss import BatchLoss
from hf_unlearn.training.search_space import Log, SearchSpace, Uniform
from hf_unlearn.training.shrink_perturb import move_towards
from hf_unlearn.training.targets import (
    REGRESSION_PAIRS,
    AlignmentTargets,
    TargetNoise,
    own_alignments,
    pair_targets,
    say_where_it_ended,
    view_targets,
)
from hf_unlearn.training.teacher import frozen_copy
from hf_unlearn.training.trainer import UnlearningTrainer

WAY_BACK = 0.7  # share of the way to the initial model: at 0.9 too little is learned again, at 0.5 too little forgotten
TARGET_EPOCHS = 4.0  # where `target_epochs` is unset
OF_PAIRS = ("retain_weight", "negative_weight", "similarity_weight", "target_features")  # views have no such terms
DISTANCES = ("unlearn_distance", "retain_shortfall", "negative_drift", "similarity_drift")  # of pairs, in the logs
OF_INITIAL = ("target_epochs", "target_learning_rate")  # of the copy that is led back towards the initial model

logger = logging.getLogger(__name__)


@dataclass
class TargetedCalibrationConfig(UnlearningConfig):
    """Targeted Calibration; defaults: chosen on the embedded CLIP task, on a split that no result is reported of."""

    method = "targeted_calibration"
    description = MethodDescription(
        title="Targeted Calibration",
        summary=(
            "It brings every sample to the alignment that exact retraining is predicted to give it, and no further: "
            "unlearn samples to those of held-out samples, while retain samples keep at least their own, and their "
            "similarities to each other."
        ),
        equations=(
            rf"{RETAIN} + w_u\, \mathbb{{E}}_\text{{unlearn}} (c_i - t_i)^2"
            r" + w_r\, \mathbb{E}_\text{retain} \max(0, t_i - c_i)^2 + w_n\, (\bar c_{i \neq j} - n_0)^2"
            r" + w_s\, \mathbb{E}_\text{retain} (c_{ij} - c^0_{ij})^2, \qquad c_{ij} = \cos(x_i, y_j),\; c_i = c_{ii}",
            INFO_NCE,
        ),
        citation=PAPER_CITATION,
    )
    search_space = SearchSpace(
        image_text={
            "learning_rate": Log(3e-4, 2e-3),
            "unlearn_weight": Log(50, 800),
            "retain_weight": Log(400, 12800),
            "similarity_weight": Log(50, 16000),
            "shrink_perturb": Uniform(0, 0.5),
        },
        views={"learning_rate": Log(5e-3, 5e-2), "unlearn_weight": Log(5, 100), "shrink_perturb": Uniform(0, 0.6)},
    )

    num_train_epochs: float = setting(24, "Epochs over retain.")
    learning_rate: float = setting(1e-3, "Learning rate.")
    lr_scheduler_type: str = setting(
        "cosine",
        "Learning-rate schedule; what is left of it at the end scatters alignments.",
    )
    shrink_perturb: float | None = setting(
        0.4,
        "Share, from 0 to 1, of a new initialisation that every weight matrix is mixed with before the first step, "
        "so that the weights, too, forget; less, or 0 for none, where retain alone could not have made the base "
        "model.",
    )
    unlearn_weight: float = setting(200.0, "Weight of unlearn alignments' squared distance to what Retrain would give.")
    retain_weight: float = setting(6400.0, "Weight of retain alignments' squared shortfall of the base model's.")
    negative_weight: float = setting(
        1000.0,
        "Weight of the squared distance of mean negative alignment to the base model's.",
    )
    similarity_weight: float = setting(
        8000.0,
        "Weight of the mean squared change of cosines between elements of different retain samples, which keeps "
        "retrieval; 0 saves the memory of the base model's embeddings.",
    )
    target_noise: float | None = setting(
        None,
        "Share of the targets' order, in [0, 1], that the seed draws, so that models differ as Retrains do (.25 on "
        "the embedded CLIP task); default: none, the best guess for each sample.",
    )

    target_features: str | None = setting(
        None,
        "Encoder of pictures and texts that never saw the requested rows, from whose embeddings, beside pixels and "
        "character n-grams, targets of pairs are predicted; default: the initial model, if there is one.",
    )
    target_epochs: float | None = setting(
        None,
        "With an initial model: epochs over retain alone of a copy that was led back towards it; what the copy "
        "makes of pairs orders the targets. 0: there is no copy, and the initial model's own embeddings order them "
        "too (with views, the model's own alignments do); default: 4.",
    )
    target_learning_rate: float | None = setting(
        None,
        "With an initial model: learning rate of that copy, best the one that the base model was fine-tuned with; "
        "default: half of learning_rate.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        noise, epochs, rate = self.target_noise, self.target_epochs, self.target_learning_rate
        for name in ("unlearn_weight", "retain_weight", "negative_weight", "similarity_weight"):
            self.check(name, 0 <= getattr(self, name) < inf, "must be a number of at least 0")
        self.check("target_noise", noise is None or 0 <= noise <= 1, "must be from 0 to 1, or unset")
        self.check("target_epochs", epochs is None or 0 <= epochs < inf, "must be a number of at least 0")
        self.check("target_learning_rate", rate is None or 0 < rate < inf, "must be a number above 0")

    def check_for(self, splits: Mapping[str, Any], start: StartingPoint) -> None:
        """As every config does; targets are read off held-out rows, and views have fewer of them."""
        super().check_for(splits, start)
        if not splits.get("validation"):
            raise UserError(
                f"{self.title} takes its targets from samples the model never saw; pass them as split validation of "
                "train_dataset"
            )
        if not start.pairs:
            self.refuse_without_effect(OF_PAIRS, "on a model that embeds views")
        elif self.target_features is not None:
            load_features(self.target_features, start.model)

    def trainings(self, uses: tuple[str, ...], start: StartingPoint) -> tuple[Training, ...]:
        """As every config's; and that of the copy that is led back towards the initial model."""
        own = super().trainings(uses, start)
        if not (start.has_initial and self.epochs_of_copy) or self.target_features is not None:
            return own
        return (*own, (self.of_copy(), FineTuneTrainer.uses))

    @property
    def epochs_of_copy(self) -> float:
        """Epochs of the copy over retain; 0: there is none."""
        return TARGET_EPOCHS if self.target_epochs is None else self.target_epochs

    def of_copy(self) -> FineTuneConfig:
        """The config of the copy's training: as the method's own, but for what is said of the copy."""
        changed = {
            "num_train_epochs": self.epochs_of_copy,
            "max_steps": -1,
            "learning_rate": self.target_learning_rate or self.learning_rate / 2,
            "shrink_perturb": None,
            "saliency_share": None,
            "save_strategy": "no",
            "checkpoint_minutes": None,
            "logging_strategy": "no",
            "disable_tqdm": True,
            "report_to": "none",
        }
        same = {each.name: deepcopy(getattr(self, each.name)) for each in fields(FineTuneConfig) if each.init}
        return _CopyConfig(**same | changed)


@dataclass
class _CopyConfig(FineTuneConfig):
    description = MethodDescription(title="Targeted Calibration's copy (target_epochs)")


class TargetedCalibrationTrainer(UnlearningTrainer):
    """Minimises `InfoNCE_R + w_u mean_U (c_i - t_i)^2 + w_r mean_R max(0, t_i - c_i)^2 + w_n (n - n_0)^2 + w_s s_R`.

    `c_i = cos(x_i, y_i)`; `n` is the mean cosine of elements of different samples, `n_0` the base model's; `s_R` is the
    mean squared change of these cosines from the base model's, among retain samples. The targets `t_i` are what exact
    retraining would give, predicted without it (`hf_unlearn.training.targets`): a held-out alignment for unlearn, the
    base model's own for retain, which may rise above it. Nothing is pushed past its target, so the removed samples
    stand out neither by too much alignment nor by too little. A step costs what one of Fine-Tune does.

    Outputs at their targets leave the knowledge in the weights: fine-tuned on retain alone, the model has it back. So
    weights are first mixed with new ones (`shrink_perturb`, arXiv 1910.08475), and what is kept is learned again with
    the targets in place. Targets, and what retain is held to, come from the base model as it was.

    The alignment of one pair of random views scatters around its picture's; a two-sided square would punish the scatter
    and so collapse the embeddings. With views only excess counts, `max(0, c_i - t_i)^2` on unlearn, and InfoNCE alone
    keeps retain and negative alignments.

    What teaches retain lifts unlearn pairs a little above their targets, and they come to rest there. From half of the
    training on this excess is taken off the targets, so that the mean is met (`StandingExcess`).

    Every run has the same targets, so a sample's alignment varies less over seeds than over Retrains, and whoever can
    train many models sees it. `target_noise` draws a share of the targets' order anew for every seed.

    On a retain stream of pairs a frozen copy of the base model says, batch by batch, how it embedded them: one more
    forward pass a step. The unlearn targets are then predicted from a sample of the stream.

    Where the initial model is known (a base that was fine-tuned from it), Retrain is that model fine-tuned on retain.
    A copy of the base is led most of the way back there and fine-tuned on retain for `target_epochs`. What it makes of
    pairs orders the targets; the initial model's embeddings help to tell their level. `shrink_perturb` mixes with the
    initial model instead of with new weights.

    Source: the calibration terms of Eq. 5 (arXiv 2406.03603), given targets; the last term is similarity-preserving
    distillation (arXiv 1907.09682). Matching what a retrained model would give is the idea of Georgiev et al.,
    "Attribute-to-Delete", arXiv 2410.23232, which trains many models for it.
    """

    config_class = TargetedCalibrationConfig
    held_weight = 8 * HELD_WEIGHT  # its terms on retain weigh much more than other methods'
    at_rest = 0.1  # with 12 epochs, what is further off half-way would lead 1 to 3 points past the targets
    args: TargetedCalibrationConfig
    _seconds_of_targets = 0.0

    def __init__(
        self, model: PreTrainedModel, args: TargetedCalibrationConfig, train_dataset: Any, *rest: Any, **kwargs: Any
    ):
        super().__init__(model, args, train_dataset, *rest, **kwargs)
        if self.initial_model is not None and is_copy(self.initial_model.state_dict(), unwrap(self.model).state_dict()):
            raise UserError(
                "initial_model has the model's own weights, which remember the requested rows; give the model that it "
                "was fine-tuned from, or leave it out"
            )
        self._of_copy = self._say_what_copy()
        self._retain, self._validation = train_dataset["retain"], train_dataset["validation"]
        streams_pairs = isinstance(self.train_dataset, StreamedBatches) and is_dual_encoder(self.model)
        self.base_model = frozen_copy(self.model) if streams_pairs else None

    @cached_property
    def targets(self) -> AlignmentTargets:
        """The cosines to train towards, predicted from the model as it is when training begins, once."""
        targets = self._predicted(self.rows.encoded(self._validation))
        return targets.lowered(self.unseen_risen, len(self.rows.unlearn(self.train_dataset))).to(self.args.device)

    def _predicted(self, held_out: EncodedSplit) -> AlignmentTargets:
        """A row for each `index` of a batch: retain, then unlearn; unlearn alone where retain is a stream."""
        rows, noise = self.train_dataset, TargetNoise(self.args.target_noise or 0, self.args.seed)
        streams = isinstance(rows, StreamedBatches)
        unlearn = rows.unlearn if isinstance(rows, StreamedBatches) else rows.splits[1]
        assert unlearn is not None  # `uses` names it
        if isinstance(self.preprocessor, ImageViewPreprocessor):
            kept = 0 if isinstance(rows, StreamedBatches) else len(rows.splits[0])
            copy = self._retrained_for_a_while()
            return view_targets(self.model, self.preprocessor, kept, unlearn, held_out, noise, copy)
        encoder, orderer = self._feature_encoders()
        known = rows.retain.sample(REGRESSION_PAIRS) if isinstance(rows, StreamedBatches) else rows.splits[0]
        targets = pair_targets(
            self.model,
            cast("ImageTextPreprocessor", self.preprocessor),
            known,
            unlearn,
            held_out,
            noise,
            unlearn_to_retain=self.unlearn_to_retain if streams else None,
            keep_embeddings=not streams and self.args.similarity_weight > 0,
            encoder=encoder,
            orderer=orderer,
        )
        return replace(targets, positive=targets.positive[len(known) :]) if streams else targets

    def _feature_encoders(self) -> tuple[FeatureEncoder | None, FeatureEncoder | None]:
        """From whose embeddings targets are predicted (the one named, or the initial model), and what orders them."""
        if self.args.target_features is not None:
            features = load_features(self.args.target_features, self.model)
            features.model.to(self.args.device)  # type: ignore[arg-type]  # the stub of `to` lacks devices
            return features, None
        if self.initial_model is None:
            return None, None
        initial = self.initial_model.to(self.args.device)  # type: ignore[arg-type]  # the stub of `to` lacks devices
        copy = self._retrained_for_a_while()
        orderer = None if copy is None else FeatureEncoder(copy, self.processing_class)
        return FeatureEncoder(initial, self.processing_class), orderer

    def _retrained_for_a_while(self) -> PreTrainedModel | None:
        """A copy led back towards the initial model, then fine-tuned on retain alone for `target_epochs`.

        It is a Retrain that is broken off: it has forgotten most of the request, and learned retain again. Where an
        adapter is trained, Retrain trains one on the initial model's whole weights; so does the copy, on its own.
        """
        if self.initial_model is None or not self.args.epochs_of_copy:
            return None
        if self.is_fsdp_enabled:
            raise UserError(
                "target_epochs fine-tunes a whole copy of the initial model, which FSDP would shard; set it to 0, or "
                "launch with recipes/accelerate_configs/multi_gpu.yaml"
            )
        start = merged(deepcopy(self.model))  # an adapter alone could not lead weights back that it leaves as they are
        if self.args.freeze is not None:
            freeze_tower(start, self.args.freeze)
        move_towards(start, self.initial_model, WAY_BACK)
        rows = self.train_dataset
        trainer = FineTuneTrainer(
            start,
            self.args.of_copy(),
            {"retain": self._retain if isinstance(rows, StreamedBatches) else rows.splits[0]},  # encoded once
            processing_class=self.processing_class,
            data_config=self.data_config,
            peft_config=cast("Any", self.model).active_peft_config if is_adapted(self.model) else None,
        )
        trainer.remove_callback(PrinterCallback)  # without a bar of its own it would print figures of the copy
        trainer.train()
        return merged(trainer.whole_model())

    def _say_what_copy(self) -> tuple[str, ...]:
        """Warn that 0 epochs make no copy, and of what is set of one in vain; return what the card says, too."""
        given, why = [name for name in OF_INITIAL if getattr(self.args, name) is not None], ""
        notes = []
        if self.initial_model is None:
            why = "no initial model is named (initial_model)"
        elif self.args.target_features is not None:
            why = "target_features predict the targets"
        elif not self.args.epochs_of_copy:
            given.remove("target_epochs")
            pairs = is_dual_encoder(unwrap(self.model))
            order = "its own embeddings order targets, too" if pairs else "the model's own alignments order targets"
            why = "target_epochs is 0"
            notes.append(f"No copy was led back towards the initial model ({why}): {order}.")
        if given and why:
            notes.append(f"{' and '.join(given)} {'have' if len(given) > 1 else 'has'} no effect, as {why}.")
        for note in notes:
            logger.warning("%s: %s", self.args.title, note)
        return tuple(notes)

    @property
    def notes(self) -> list[str]:
        """As the base class's; what is to be said of the copy; and how certain the targets are."""
        predicted = vars(self).get("targets")  # not by a training that never began
        return [*super().notes, *self._of_copy, *(predicted.notes if predicted is not None else ())]

    def begin(self) -> None:
        """Predict the targets."""
        started = time.monotonic()
        _ = self.targets  # predicted now, while the weights are as they were given, and kept
        self._seconds_of_targets = time.monotonic() - started

    def train(self, *positional: Any, **kwargs: Any) -> TrainOutput:
        """As the base class does; the run time includes what the targets took."""
        output = super().train(*positional, **kwargs)
        output.metrics["train_runtime"] += self._seconds_of_targets
        return output

    def end(self) -> tuple[str, ...]:
        """Tell of unlearn samples that are far from their targets."""
        unlearn = self.rows.unlearn(self.train_dataset)
        own = own_alignments(self.whole_model(), self.preprocessor, unlearn)
        meant = self.targets.positive[-len(unlearn) :, : own.shape[1]].to(own.device)
        lifts = isinstance(self.preprocessor, ImageTextPreprocessor)  # views that are too low stay so
        return say_where_it_ended(own, meant, self.targets.spread, below=lifts)

    def beside(self, model: nn.Module, batch: TrainingBatch) -> tuple[Any, ...]:
        """`[n]` the targets; of pairs, where the base model was, and what each distance weighs, too."""
        if batch.caption is None:
            return (self.targets.positive[batch.index, 0],)
        targets, base = self._pair_targets(batch, batch.caption)
        args, lowered = self.args, self.excess.lowered["unlearn"]
        weights = (args.unlearn_weight, args.retain_weight, args.negative_weight, args.similarity_weight)
        return targets - lowered * batch.is_unlearn, base, constant(weights, targets.device)

    def batch_loss(self, terms: ContrastiveTerms, is_unlearn: Tensor, *beside: Any) -> BatchLoss:
        """InfoNCE on the retain samples of a batch, and the squared distances of alignments to targets."""
        targets, retain = beside[0], retain_info_nce(terms, is_unlearn)
        if not isinstance(self.preprocessor, ImageTextPreprocessor):
            excess = torch.relu(terms.positive_alignment / terms.scale - targets)
            unlearn = torch.dot(excess * shares(is_unlearn)[1], excess) * world_size()
            return retain + self.args.unlearn_weight * unlearn, {"loss_retain": retain, "unlearn_distance": unlearn}
        _, base, weights = beside
        distances, excess = calibration_distances(terms, is_unlearn, targets, self.targets.negative, base)
        loss = retain + torch.dot(distances, weights[: len(distances)])
        parts = dict(zip(DISTANCES, distances.unbind(), strict=False))  # the last one where similarities are kept
        return loss, {"loss_retain": retain, **parts, "unlearn_excess": excess}

    def _pair_targets(self, batch: TrainingBatch, drawn: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        """`[n]` target of each pair, a picture with the caption that this step drew for it; where the base model was.

        That is its embeddings of retain pictures and captions, `[n, d]` each; None if similarities need not be kept.
        """
        targets = self.targets.positive[batch.index]
        known = drawn.clamp(max=targets.shape[1] - 1)  # a streamed row may have more captions than any unlearn row
        given = targets.gather(1, known[:, None])[:, 0]
        if self.base_model is not None:
            with torch.no_grad(), self.accelerator.autocast():
                own = contrastive_terms(self.base_model, batch.inputs, self.args.forward_chunk_size)
            base = (own.x, own.y) if self.args.similarity_weight else None
            return torch.where(batch.is_unlearn, given, own.cosine), base
        first, second = self.targets.first, self.targets.second
        if first is None or second is None:
            return given, None
        row = batch.index.clamp(max=len(first) - 1)  # unlearn samples take anyone's: they are masked
        return given, (first[row], second[row, drawn.clamp(max=second.shape[1] - 1)])
