"""CLIP steps, beside a plain loop over `CLIPModel`."""

from collections.abc import Iterator
from copy import deepcopy
from itertools import islice

import torch
from torch import Tensor
from transformers import CLIPConfig, CLIPModel

from hf_unlearn.models.small_clip import build_small_clip
from speed.rounds import Rounds, Row, Setting, Work
from speed.steps import (
    AC,
    OURS,
    as_dataset,
    compared,
    encoded_splits,
    endless,
    optimizer_of,
    random_pictures,
    throughput,
    trainer_step,
)


class PlainClipStep:
    """One step of a plain Hugging Face loop: `CLIPModel(..., return_loss=True)`, inputs from the processor or given."""

    def __init__(self, setting: Setting, model: CLIPModel, batches: Iterator[dict[str, Tensor]]) -> None:
        self.setting, self.model, self.batches = setting, model.to(setting.device).train(), batches  # type: ignore[arg-type]
        self.optimizer = optimizer_of(model)

    def __call__(self) -> Tensor:
        """Take the step and return its loss."""
        batch = {name: value.to(self.setting.device) for name, value in next(self.batches).items()}
        with torch.autocast(self.setting.device.type, torch.bfloat16, enabled=self.setting.cuda):
            loss = self.model(**batch, return_loss=True).loss
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.detach()


def clip_steps(setting: Setting, folder: str) -> Iterator[Row]:
    """CLIP: the small one of the demo on a CPU, ViT-B/32 on a GPU, where the processor is no part of a step."""
    side = 224 if setting.cuda else 32
    captions = [f"{number} dogs in a photograph of the sea" for number in range(2 * setting.pictures)]
    data = as_dataset(random_pictures(len(captions), side), captions=[[caption] for caption in captions])
    torch.manual_seed(0)
    model, processor = build_small_clip(captions, image_size=side)
    if setting.cuda:
        known = processor.tokenizer
        tokens = {"pad_token_id": known.pad_token_id, "bos_token_id": known.bos_token_id}
        tokens["eos_token_id"] = known.eos_token_id
        with setting.device:
            model = CLIPModel(CLIPConfig(text_config=tokens))

    def processed() -> Iterator[dict[str, Tensor]]:
        while True:
            for start in range(0, len(data), setting.pictures):
                rows = data[start : start + setting.pictures]
                texts = [texts[0] for texts in rows["captions"]]
                yield dict(
                    processor(
                        images=rows["image"], text=texts, padding="max_length", truncation=True, return_tensors="pt"
                    )
                )

    ready = [{name: value.to(setting.device) for name, value in batch.items()} for batch in islice(processed(), 2)]
    splits = encoded_splits(model, processor, data)
    contenders: dict[str, Work] = {}
    for name, method in list(OURS.items())[: 1 if setting.compiled else None]:
        contenders[name] = trainer_step(setting, method, deepcopy(model), processor, splits, folder)
        if name == AC:
            contenders["CLIPModel's own loss, inputs ready"] = PlainClipStep(setting, deepcopy(model), endless(ready))
    if not setting.cuda:
        contenders["CLIPModel's own loss and processor"] = PlainClipStep(setting, deepcopy(model), processed())
    rounds = Rounds(setting, contenders)
    note = throughput(setting, rounds, "pairs")
    yield from compared(rounds, f"CLIP step, {setting.pictures} pairs{', compiled' * setting.compiled}", note)
