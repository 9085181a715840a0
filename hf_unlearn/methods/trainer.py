"""What every unlearning method shares: its `TrainingArguments` and its `Trainer` around the three quantities."""

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from datasets import Dataset, DatasetDict
from torch import Tensor, nn
from transformers import PreTrainedModel, Trainer, TrainingArguments
from transformers.trainer import TRAINING_ARGS_NAME

from hf_unlearn.data.encoded import RESIDENT_BYTES, EncodedSplit, EncodedSplits, as_batch
from hf_unlearn.data.inputs import ContrastiveInputs, ImageTextInputs, ImageViewInputs
from hf_unlearn.data.sampler import SplitSampler
from hf_unlearn.data.views import VIEW_PRESETS
from hf_unlearn.errors import UserError
from hf_unlearn.losses import ContrastiveTerms, info_nce
from hf_unlearn.models.contrastive import ModelInputs, contrastive_terms, is_dual_encoder, unwrap


@dataclass
class UnlearningConfig(TrainingArguments):
    """`TrainingArguments` with the defaults contrastive unlearning needs; each method's config extends it."""

    method: ClassVar[str]
    title: ClassVar[str]

    per_device_train_batch_size: int = field(
        default=128, metadata={"help": "Batch size per device; a contrastive loss depends on it."}
    )
    per_device_eval_batch_size: int = field(default=256, metadata={"help": "Batch size per device in evaluation."})
    lr_scheduler_type: str = field(  # type: ignore[assignment]
        default="constant", metadata={"help": "Learning-rate schedule; the paper's unlearning runs hold it fixed."}
    )
    save_strategy: str = field(  # type: ignore[assignment]
        default="no", metadata={"help": "When to write checkpoints to resume from: no, epoch or steps."}
    )
    logging_strategy: str = field(  # type: ignore[assignment]
        default="epoch", metadata={"help": "When to log the mean of each loss term: epoch or steps."}
    )
    remove_unused_columns: bool = field(default=False, metadata={"help": "Rows are encoded by the library itself."})
    seed: int = field(default=0, metadata={"help": "Seed of the order of samples, of views and of new weights."})
    max_length: int | None = field(
        default=None, metadata={"help": "Tokens a caption is padded and cut to; default: what the text encoder takes."}
    )
    flip_probability: float = field(
        default=0.0, metadata={"help": "Chance of mirroring a picture in image-text training (paper, COCO: .5)."}
    )
    views: str = field(
        default="cifar", metadata={"help": f"Preset of random views for SimCLR and MoCo: {', '.join(VIEW_PRESETS)}."}
    )
    forward_chunk_size: int | None = field(
        default=None,
        metadata={"help": "Embed this many samples at a time and recompute in backward: exact, for large batches."},
    )
    resident_bytes: int = field(
        default=RESIDENT_BYTES, metadata={"help": "Encoded splits up to this size are decoded once, into memory."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.dataloader_pin_memory &= torch.accelerator.is_available()  # on a CPU it would only warn
        if self.per_device_train_batch_size < 2:
            raise UserError("per_device_train_batch_size 1 leaves InfoNCE without negatives; use at least 2")
        if self.views not in VIEW_PRESETS:
            raise UserError(f"views={self.views!r} is unknown; choose one of {', '.join(VIEW_PRESETS)}")
        if self.forward_chunk_size is not None and self.forward_chunk_size < 1:
            raise UserError(f"forward_chunk_size={self.forward_chunk_size} must be at least 1, or unset")


class UnlearningTrainer(Trainer):
    """A `Trainer` over `DatasetDict(retain=..., unlearn=...)`; a method overrides `compute_loss`.

    Args:
        model: a contrastive encoder (CLIP-like, SimCLR, MoCo); it is trained in place, its source is never written.
        args: the method's config.
        train_dataset: `DatasetDict` with splits `retain` and `unlearn` in the schema of `hf_unlearn.data`, or the same
            splits already encoded, so that several methods share them.
        eval_dataset: rows for the evaluation loss, usually `validation`.
        processing_class: the model's processor (image-text) or image processor (views).

    Raises:
        UserError: when a split the method learns from is missing or empty, or no step could be made.
    """

    uses: ClassVar[tuple[str, ...]] = ("retain", "unlearn")
    config_class: ClassVar[type[UnlearningConfig]]
    # How `push_to_hub` publishes; set by `hf_unlearn.runs.publishing`, which this layer must not import.
    publish: ClassVar[Callable[..., Any] | None] = None
    args: UnlearningConfig
    train_dataset: EncodedSplits
    model: PreTrainedModel
    # A contrastive loss is a mean over its own batch: let the Trainer divide by the accumulation steps.
    loss_is_scaled_for_ga = False

    def __init__(
        self,
        model: PreTrainedModel,
        args: UnlearningConfig,
        train_dataset: DatasetDict | Mapping[str, EncodedSplit],
        eval_dataset: Dataset | EncodedSplit | None = None,
        processing_class: Any = None,
        **kwargs: Any,
    ) -> None:
        sizes = {name: len(train_dataset[name]) if name in train_dataset else 0 for name in ("retain", "unlearn")}
        for name in self.uses:
            if sizes[name] == 0:
                raise UserError(
                    f"{args.title} learns from the {name} split, which is empty or missing; pass one with rows"
                )
        if sum(sizes[name] for name in self.uses) < 2:
            raise UserError(
                f"{args.title} has a single sample to learn from, so InfoNCE has no negatives; pass more rows"
            )
        self.unlearn_to_retain = sizes["unlearn"] / max(1, sizes["retain"])
        self.resident_bytes = args.resident_bytes
        self.source_splits = train_dataset if isinstance(train_dataset, DatasetDict) else None
        self.model_inputs = make_inputs(model, processing_class, args)
        encoded = EncodedSplits(*(self._encode(train_dataset[n]) if n in self.uses else None for n in sizes))
        evaluated = None if eval_dataset is None else EncodedSplits(self._encode(eval_dataset), None)
        self._seeded_step, self._micro_step = -1, 0
        self._terms: dict[str, dict[str, list[Tensor]]] = {"train": defaultdict(list), "eval": defaultdict(list)}
        super().__init__(
            model=model,
            args=args,
            train_dataset=encoded,
            eval_dataset=evaluated,
            processing_class=processing_class,
            data_collator=as_batch,  # type: ignore[arg-type]
            **kwargs,
        )

    def _encode(self, split: Dataset | EncodedSplit) -> EncodedSplit:
        if isinstance(split, EncodedSplit):
            return split
        return EncodedSplit(split, self.model_inputs, self.resident_bytes)

    def _get_train_sampler(self, train_dataset: Any = None) -> SplitSampler:
        splits = self.train_dataset
        return SplitSampler(splits.retain, splits.unlearn, self._train_batch_size, self.args.seed)

    def contrast(self, model: nn.Module, inputs: dict[str, Tensor]) -> tuple[ContrastiveTerms, Tensor]:
        """One forward pass over a batch: its `ContrastiveTerms` and which samples are to be unlearned (`[n]` bool)."""
        inputs = dict(inputs)
        is_unlearn = inputs.pop("is_unlearn")
        inputs.pop("index")
        seed = self._step_seed() if model.training else None
        batch: ModelInputs = self.model_inputs.batch(inputs, seed)
        return contrastive_terms(model, batch, self.args.forward_chunk_size), is_unlearn

    def _step_seed(self) -> int:
        """This step's seed for random views; it depends on the place in training alone, so that resuming repeats it."""
        step = self.state.global_step
        self._micro_step = self._micro_step + 1 if self._seeded_step == step else 0
        self._seeded_step = step
        place = (self.args.seed, step, self._micro_step, self.args.process_index)
        return int(torch.tensor(place).mul(torch.tensor([1, 7_919, 104_729, 1_299_709])).sum()) % 2**31

    def report(self, total: Tensor, **terms: Tensor) -> Tensor:
        """Remember each named loss term for the logs and return the total; costs no synchronisation."""
        mode = "train" if self.model.training else "eval"
        for name, value in terms.items():
            self._terms[mode][name].append(value.detach())
        return total

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Tensor], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[Tensor, None, None]:
        """InfoNCE of held-out rows; methods differ in what they train on, not in what they are evaluated by."""
        with torch.no_grad(), self.compute_loss_context_manager():
            terms, _ = self.contrast(model, self._prepare_inputs(inputs))
            everything = torch.ones(len(terms.x), device=terms.x.device)
            return info_nce(terms, everything).detach(), None, None

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the mean of each loss term since the last log, over all processes."""
        mode = "train" if self.model.training else "eval"
        for name, values in self._terms[mode].items():
            logs[name] = self.accelerator.reduce(torch.stack(values).mean(), "mean").item()
        self._terms[mode].clear()
        super().log(logs, start_time)

    def push_to_hub(
        self,
        commit_message: str | None = None,
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **options: Any,
    ) -> Any:
        """Publish the trained model with its card and records, in one commit.

        The arguments are those of `transformers.Trainer.push_to_hub`; `options` are those of
        `hf_unlearn.hub.trainer_push.push_trainer`, such as `create_pr` and `dry_run`.

        Raises:
            UserError: when the Trainer was imported from `hf_unlearn.methods` instead of `hf_unlearn`, or
                `blocking=False` is asked for.
        """
        publish = type(self).publish
        if publish is None:
            raise UserError("push_to_hub needs the publishing layer; import the Trainer from hf_unlearn")
        if not blocking:
            raise UserError("push_to_hub checks what it sends before and after, so it blocks; leave blocking=True")
        named = {"commit_message": commit_message, "token": token, "revision": revision, "private": private}
        return publish(self, **named, **options)

    def create_model_card(self, *positional: Any, **kwargs: Any) -> None:
        """Nothing: the card is written from the run's records, by `push_to_hub` and `hf-unlearn card`."""

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        raise UserError(
            "push_to_hub=True would send checkpoints with optimiser pickles; call trainer.push_to_hub() instead"
        )

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        super()._save(output_dir, state_dict)
        # The Trainer pickles its arguments beside the weights; unlearning.json records them readably instead.
        (Path(output_dir or str(self.args.output_dir)) / TRAINING_ARGS_NAME).unlink(missing_ok=True)


def make_inputs(model: PreTrainedModel, processing_class: Any, args: UnlearningConfig) -> ContrastiveInputs:
    """The inputs of a model's kind: image-text pairs for dual encoders, random views for SimCLR and MoCo.

    Raises:
        UserError: without the model's processor.
    """
    if processing_class is None:
        raise UserError(
            "processing_class is missing; pass the processor saved with the model (AutoProcessor.from_pretrained)"
        )
    model = unwrap(model)  # type: ignore[assignment]
    if is_dual_encoder(model):
        length = args.max_length or model.config.get_text_config().max_position_embeddings
        return ImageTextInputs(processing_class, length, args.flip_probability)
    return ImageViewInputs(processing_class, VIEW_PRESETS[args.views])
