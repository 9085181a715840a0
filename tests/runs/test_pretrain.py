"""The cache of trainings from scratch: whatever may change weights makes it another training."""

import copy
import dataclasses
import json

import pytest
from peft import LoraConfig
from transformers import CLIPProcessor

from hf_unlearn.data.config import DataConfig
from hf_unlearn.methods.retrain import RetrainConfig
from hf_unlearn.models.loading import load_encoder
from hf_unlearn.records.schemas import DatasetRecord
from hf_unlearn.records.settings import WITHOUT_EFFECT
from hf_unlearn.runs import model_cache, pretrain


@pytest.fixture
def folder_of(tiny_clip, tmp_path, monkeypatch):
    """The cached folder of a training with given settings, which is not carried out."""
    monkeypatch.setenv("HF_UNLEARN_CACHE", str(tmp_path))
    monkeypatch.setattr(pretrain, "is_finished", lambda folder: True)
    model, processor = load_encoder(str(tiny_clip))
    data = DatasetRecord("pictures", sha256="a" * 64)

    def folder(data_settings=None, processor=processor, peft_config=None, **settings):
        config = RetrainConfig(**{"output_dir": str(tmp_path / "out"), "use_cpu": True, **settings})
        given = DataConfig(**(data_settings or {}))
        return pretrain.train_from_scratch(lambda: None, data, model, processor, config, given, peft_config=peft_config)

    return folder


OTHERS = [
    {"optim": "sgd", "optim_args": "momentum=0.9"},
    {"optim": "sgd", "optim_args": "momentum=0"},
    {"adam_beta2": 0.95},
    {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": 1e-6}},
    {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": 1e-7}},
    {"weight_decay": 0.3},
    {"seed": 1},
    {"bf16": True},
    {"tf32": None, "adam_epsilon": 1e-6},
    {"accelerator_config": {"even_batches": False}},
    {"data_settings": {"views": "light"}},
    {"data_settings": {"max_length": 8}},
    {"data_settings": {"flip_probability": 0.5}},
]


def test_whatever_may_change_weights_is_another_training(folder_of):
    folders = [folder_of(), *(folder_of(**settings) for settings in OTHERS)]
    assert len(set(folders)) == len(folders)


def test_another_processor_is_another_training_and_the_same_one_from_elsewhere_is_not(folder_of, loaded_clip, tmp_path):
    _, processor = loaded_clip
    brighter, reordered = copy.deepcopy(processor), tmp_path / "reordered"
    brighter.image_processor.image_mean = [0.0, 0.0, 0.0]
    processor.save_pretrained(tmp_path / "elsewhere")
    processor.save_pretrained(reordered)
    words = json.loads((reordered / "tokenizer.json").read_text())
    vocabulary = words["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (reordered / "tokenizer.json").write_text(json.dumps(words))
    others = [brighter, CLIPProcessor.from_pretrained(reordered)]
    assert len({folder_of(), *(folder_of(processor=other) for other in others)}) == 3
    same = CLIPProcessor.from_pretrained(tmp_path / "elsewhere")
    same.tokenizer(["a cat"], padding="max_length", max_length=8, truncation=True)
    assert folder_of(processor=same) == folder_of()


def test_where_an_adapters_base_lies_is_nothing_of_a_training(folder_of):
    here, there = (LoraConfig(r=2, base_model_name_or_path=place) for place in ("/here", "/there"))
    assert folder_of(peft_config=here) == folder_of(peft_config=there) != folder_of(peft_config=LoraConfig(r=4))


def test_all_processes_do_what_the_first_one_finds(folder_of, monkeypatch):
    """Another run finishes the model between the looks of two processes: neither trains it, and none waits for ever."""
    folder = folder_of()
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    told = [False, "locked", None, True]  # by the first process: not there; waited for; cleared up; now it is

    def gather(shares, own):
        shares[:] = [{0: told.pop(0)}, own]

    monkeypatch.setattr(pretrain, "is_finished", model_cache.is_finished)
    monkeypatch.setattr("hf_unlearn.distributed.world_size", lambda: 2)
    monkeypatch.setattr("hf_unlearn.distributed.rank", lambda: 1)
    monkeypatch.setattr("torch.distributed.all_gather_object", gather)
    assert folder_of() == folder and not told


def test_what_changes_no_weight_is_the_same_training(folder_of):
    same = {"logging_steps": 3, "run_name": "x", "save_total_limit": 7, "hub_model_id": "a/b", "checkpoint_minutes": 1}
    assert folder_of(**same) == folder_of() == folder_of({"resident_bytes": 0}, dataloader_pin_memory=False)


def test_a_setting_that_nobody_listed_counts():
    own = {field.name for field in dataclasses.fields(RetrainConfig)} | {f.name for f in dataclasses.fields(DataConfig)}
    assert own >= WITHOUT_EFFECT, "the list names only settings that exist"
    assert not {"learning_rate", "optim_args", "adam_beta2", "shrink_perturb", "views", "seed"} & WITHOUT_EFFECT
