"""Batches of a training: how they are drawn and loaded, and what the model gets of one."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from accelerate.data_loader import DataLoaderShard
from torch import Tensor, nn
from torch.utils.data import DataLoader

from hf_unlearn.data.encoded import EncodedSplit, EncodedSplits
from hf_unlearn.data.preprocessing import ContrastivePreprocessor, ImageTextPreprocessor, ImageViewPreprocessor
from hf_unlearn.data.sampler import SplitSampler
from hf_unlearn.data.streaming import StreamedBatches
from hf_unlearn.distributed import rank, world_size
from hf_unlearn.errors import UserError
from hf_unlearn.models.contrastive import ModelInputs
from hf_unlearn.training.config import UnlearningConfig
from hf_unlearn.training.rows import TrainingRows
from hf_unlearn.training.step import LeanTrainer


@dataclass(frozen=True)
class TrainingBatch:
    """A batch ready for a model.

    Attributes:
        inputs: what the model's `forward` takes, batch first.
        is_unlearn: `[n]` bool, which samples are to be unlearned.
        index: `[n]` place of each sample: retain rows first, then unlearn rows. Where retain is a stream, place in the
            unlearn split, and -1 for retain rows.
        caption: `[n]` which of its captions each picture is paired with; None for random views.
    """

    inputs: ModelInputs
    is_unlearn: Tensor
    index: Tensor
    caption: Tensor | None = None


class BatchTrainer(LeanTrainer):
    """A `Trainer` whose batches hold retain and unlearn samples, encoded once or streamed.

    Attributes:
        rows: the splits it was given.
        preprocessor: how a batch of them becomes what the model takes.
    """

    args: UnlearningConfig
    train_dataset: EncodedSplits | StreamedBatches
    rows: TrainingRows
    preprocessor: ContrastivePreprocessor
    _seeded_step = -1
    _micro_step = 0

    def _feed_accelerator(self, splits: EncodedSplits) -> None:
        """Keep encoded splits there if a quarter of its free memory has room; decode others in processes beside."""
        args = self.args
        if args.workers_unset and splits.nbytes is None:
            processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
            args.dataloader_num_workers = max(1, processors // int(os.environ.get("LOCAL_WORLD_SIZE", "1")) - 1)
        if args.dataloader_num_workers:
            return
        free, _ = torch.accelerator.get_memory_info(self.args.device)
        if splits.nbytes is not None and splits.nbytes <= free // 4:
            self.train_dataset = splits.on(self.args.device)
            self.args.dataloader_pin_memory = False  # of no use there, and refused
            for settings in (self.args.accelerator_config, self.accelerator.dataloader_config):
                settings.non_blocking = False  # type: ignore[union-attr]  # or it would warn that nothing is pinned

    def get_train_dataloader(self) -> DataLoader[object]:
        """Ready batches: drawn from resident splits by `SplitSampler`, or from a stream by each of its processes."""
        if not isinstance(self.train_dataset, StreamedBatches):
            return super().get_train_dataloader()
        workers = min(self.args.dataloader_num_workers or 0, self.train_dataset.shards)
        return DataLoaderShard(
            self.train_dataset,
            device=self.args.device,
            batch_size=None,
            num_workers=workers,
            pin_memory=self.args.dataloader_pin_memory,
            _non_blocking=self.accelerator.non_blocking,
            prefetch_factor=self.args.dataloader_prefetch_factor if workers else None,
        )

    def get_eval_dataloader(self, eval_dataset: object = None) -> DataLoader[object]:
        """As the Trainer does, for a split of rows, too, which is encoded first.

        Raises:
            UserError: There is no split to evaluate on.
        """
        if eval_dataset is None and self.eval_dataset is None:
            raise UserError(
                "the Trainer has no eval_dataset, whose loss evaluate() takes; give it one (splits['validation']), or "
                "measure a finished model with hf-unlearn evaluate"
            )
        return super().get_eval_dataloader(self.rows.evaluation(eval_dataset))

    def get_test_dataloader(self, test_dataset: object) -> DataLoader[object]:
        """As `get_eval_dataloader`."""
        return super().get_test_dataloader(self.rows.evaluation(test_dataset))

    def num_examples(self, dataloader: DataLoader[object]) -> int:
        """Rows of an epoch; for a stream, whose items are batches, those of all its batches."""
        rows = dataloader.dataset
        if isinstance(rows, StreamedBatches):
            return len(rows) * rows.processes * (rows.retain_per_batch + rows.unlearn_per_batch)
        return super().num_examples(dataloader)

    def _get_train_sampler(self, train_dataset: object = None) -> SplitSampler:
        splits = self.train_dataset
        assert isinstance(splits, EncodedSplits)  # a stream needs no sampler
        return SplitSampler(splits.retain, splits.unlearn, self._train_batch_size, self.args.seed)

    def model_batch(self, model: nn.Module, inputs: dict[str, Tensor]) -> TrainingBatch:
        """A batch of the loader as the model takes it, with this step's views or captions.

        In evaluation mode views depend on the batch's place alone, and of several captions the first is taken.
        """
        inputs = dict(inputs)
        is_unlearn, index = inputs.pop("is_unlearn"), inputs.pop("index")
        seed = None
        if model.training:
            seed = self._step_seed()
        elif isinstance(self.preprocessor, ImageViewPreprocessor):  # a picture compared with itself would say nothing
            seed = self.place_seed(int(index[0]))
        if isinstance(self.preprocessor, ImageTextPreprocessor):
            caption, mirrored = self.preprocessor.draw(inputs["caption_counts"], seed)
            return TrainingBatch(self.preprocessor.pairs(inputs, caption, mirrored), is_unlearn, index, caption)
        drawn = self._step_preprocessor if model.training else self.preprocessor
        return TrainingBatch(drawn.batch(inputs, seed), is_unlearn, index)

    @cached_property
    def _step_preprocessor(self) -> ContrastivePreprocessor:
        return self.preprocessor.compiled(self.compiled)

    def _step_seed(self) -> int:
        """This step's seed for random views; it depends on the place in training alone, so that resuming repeats it."""
        step = self.state.global_step
        self._micro_step = self._micro_step + 1 if self._seeded_step == step else 0
        self._seeded_step = step
        place = 7_919 * step + 104_729 * self._micro_step + 1_299_709 * self.args.process_index
        return (self.args.seed + place) % 2**31

    def place_seed(self, first: int) -> int:
        """The seed for random views of a batch outside training, whose first row has this number in its split."""
        return (self.args.seed * 1_000_003 + first) % 2**31

    def split_batches(self, split: EncodedSplit) -> Iterator[ModelInputs]:
        """One pass over a split in its order, as model inputs: this process's part of every batch.

        Views depend on the seed and the place alone. The last batch is filled up from the start, so that all processes
        have equally many rows.
        """
        each = min(self.args.per_device_train_batch_size, -(-len(split) // world_size()))
        for start in range(0, len(split), each * world_size()):
            first = start + rank() * each
            rows = self._prepare_inputs(split.rows([row % len(split) for row in range(first, first + each)]))
            yield self.preprocessor.batch(rows, self.place_seed(first))

    def _first_split(self, rows: int) -> EncodedSplit:
        """The first split that is trained on; of a stream so many rows."""
        data = self.train_dataset
        split = data.splits[0] if isinstance(data, EncodedSplits) else data.retain.sample(rows)
        assert split is not None
        return split
