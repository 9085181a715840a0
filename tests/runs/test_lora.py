"""Runs with `--use_peft` on view encoders: folders, resuming, unlearning again, and what is refused."""

import json
import sys

import pytest
import torch
from trainers import BACKBONE

from hf_unlearn.data.views import VIEW_PRESETS
from hf_unlearn.errors import UserError
from hf_unlearn.hub.verification import verify_repo
from hf_unlearn.models.image_processor import image_processor_of
from hf_unlearn.models.loading import load_encoder
from hf_unlearn.models.moco import MoCoConfig, MoCoModel
from hf_unlearn.models.simclr import SimCLRConfig, SimCLRModel
from hf_unlearn.models.weights import weights_sha256
from hf_unlearn.records.schemas import UnlearningManifest
from hf_unlearn.runs.command_line import parse_run
from hf_unlearn.runs.unlearn import unlearn_and_compare

TINY = {"backbone_config": BACKBONE, "projection_dim": 16}


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    root = tmp_path_factory.mktemp("bases")
    torch.manual_seed(0)
    for name, model in {"simclr": SimCLRModel(SimCLRConfig(**TINY)), "moco": MoCoModel(MoCoConfig(**TINY))}.items():
        model.save_pretrained(root / name)
        image_processor_of(VIEW_PRESETS["light"].__class__(size=16)).save_pretrained(root / name)
    return {name: root / name for name in ("simclr", "moco")}


@pytest.fixture
def unlearn(bases, shapes, tmp_path, monkeypatch):
    """Run methods on a base model, into a folder; returns that folder."""
    monkeypatch.setenv("HF_UNLEARN_CACHE", str(tmp_path / "cache"))
    shapes.save_to_disk(tmp_path / "data")

    def run(base, *argv, methods=("fine_tune",), out="out"):
        given = ["--dataset_name", str(tmp_path / "data"), "--model_name_or_path", str(bases.get(base, base))]
        given += ["--output_dir", str(tmp_path / out), "--num_train_epochs", "1", "--learning_rate", "1e-2"]
        given += ["--unlearn_fraction", "0.1"]
        given += ["--per_device_train_batch_size", "16", "--views", "light", "--use_cpu", "true", "--methods", *methods]
        unlearn_and_compare(parse_run([*given, *argv]), build=None)
        return tmp_path / out

    return run


def test_a_run_leaves_the_adapter_beside_a_whole_retrain_and_resumes(unlearn, bases):
    out = unlearn("simclr", "--use_peft", "--lora_r", "4", methods=("retrain", "fine_tune"))
    assert (out / "retrain" / "model.safetensors").is_file()  # it draws every weight anew
    adapter = out / "fine_tune"
    assert (adapter / "adapter_model.safetensors").is_file() and not (adapter / "model.safetensors").exists()
    card = (adapter / "README.md").read_text()
    assert "AutoModel.from_pretrained" in card and "trust_remote_code=True" in card and "library_name: peft" in card
    assert verify_repo(adapter, base=bases["simclr"]).ok
    written, table = (adapter / "adapter_model.safetensors").stat().st_mtime_ns, (out / "results.json").read_text()
    unlearn("simclr", "--use_peft", "--lora_r", "4", "--resume", methods=("retrain", "fine_tune"))
    assert (adapter / "adapter_model.safetensors").stat().st_mtime_ns == written
    assert [row["metrics"]["emia"] for row in json.loads((out / "results.json").read_text())["rows"]] == [
        row["metrics"]["emia"] for row in json.loads(table)["rows"]
    ]
    with pytest.raises(UserError, match=r"lora_r was 4 and is 8"):
        unlearn("simclr", "--use_peft", "--lora_r", "8", "--resume", methods=("retrain", "fine_tune"))


def test_unlearning_again_starts_from_the_adapter_on_its_base(unlearn, bases):
    first = unlearn("simclr", "--use_peft") / "fine_tune"
    second = unlearn(first, out="again") / "fine_tune"
    manifest = UnlearningManifest.load(second)
    assert manifest.base_model.sha256 == weights_sha256(first)
    assert [entry.base_sha256 for entry in manifest.history] == [weights_sha256(bases["simclr"])]
    assert type(load_encoder(str(second))[0]) is SimCLRModel
    with pytest.raises(UserError, match="is itself an adapter"):
        unlearn(first, "--use_peft", out="third")


@pytest.mark.parametrize(
    ("base", "argv", "message"),
    [
        ("moco", [], "MoCo cannot be trained through an adapter: its momentum encoder"),
        ("simclr", ["--lora_target_modules", "q_proj"], "the adapter .*q_proj.* does not fit SimCLRModel: No modules"),
        ("simclr", ["--lora_r", "0"], "does not fit SimCLRModel: `r` should be a positive"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_written(unlearn, tmp_path, base, argv, message):
    with pytest.raises(UserError, match=message):
        unlearn(base, "--use_peft", *argv)
    assert not (tmp_path / "out").exists()


def test_without_peft_the_remedy_is_told(unlearn, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(
        UserError, match=r'LoRA needs the package peft; install it with pip install -e "\.\[peft\]" in a clone'
    ):
        unlearn("simclr", "--use_peft")
    assert not (tmp_path / "out").exists()


def test_retrain_trains_an_adapter_on_an_initial_model_and_leaves_both_as_one(unlearn, tmp_path):
    torch.manual_seed(5)
    initial = SimCLRModel(SimCLRConfig(**TINY))
    initial.save_pretrained(tmp_path / "public")
    image_processor_of(VIEW_PRESETS["light"].__class__(size=16)).save_pretrained(tmp_path / "public")
    given = ["--initial_model", str(tmp_path / "public"), "--warmup_steps", "0"]
    out = unlearn("simclr", *given, "--use_peft", "--lora_r", "2", methods=("retrain",))
    trained = load_encoder(str(out / "retrain"))[0].state_dict()
    moved = {name: trained[name] - value for name, value in initial.state_dict().items() if "weight" in name}
    matrices = {name: value for name, value in moved.items() if value.ndim == 2 and value.abs().max() > 1e-6}
    assert matrices and all(torch.linalg.matrix_rank(value, atol=1e-5) <= 2 for value in matrices.values())
    assert "trained an adapter on the initial model" in (out / "retrain" / "README.md").read_text()
    whole = unlearn("simclr", *given, methods=("retrain",), out="whole")  # not what is cached for the other
    assert weights_sha256(whole / "retrain") != weights_sha256(out / "retrain")
