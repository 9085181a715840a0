"""An adapter from the recipe to a stranger's machine: trained by `--use_peft`, published alone, loaded, verified."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from commands import ends
from datasets import Dataset
from folders import folder_hash
from hub.local_hub import LocalHub
from hub.test_end_to_end import environment

from hf_unlearn.cli.unlearn import run_methods
from hf_unlearn.errors import UserError
from hf_unlearn.hub.card import write_card
from hf_unlearn.hub.publishing import publish_run
from hf_unlearn.hub.verification import verify_repo
from hf_unlearn.hub.verification_report import VerificationReport
from hf_unlearn.models.loading import load_encoder
from hf_unlearn.models.weights import weights_sha256
from hf_unlearn.records.schemas import UnlearningManifest

pytestmark = pytest.mark.slow
REPO = "org/clip-lora"

STRANGER = """
import sys
import torch
from peft import PeftModel
from transformers import AutoModel, AutoProcessor

repo, base, picture = sys.argv[1:]
model = PeftModel.from_pretrained(AutoModel.from_pretrained(base), repo).eval()
size = AutoProcessor.from_pretrained(repo).image_processor.crop_size["height"]
pixels = torch.linspace(-1, 1, 3 * size * size).view(1, 3, size, size)
with torch.inference_mode():
    print(float(model.get_image_features(pixel_values=pixels).pooler_output.double().sum()))
    from hf_unlearn import load_encoder
    ours, _ = load_encoder(repo, base=base)
    print(float(ours.eval().get_image_features(pixel_values=pixels).pooler_output.double().sum()))
from hf_unlearn.cli import main
sys.argv = ["hf-unlearn", "verify", repo, "--base", base]
main()
"""


def python(*command: object, **variables: str) -> str:
    """What a process of its own prints."""
    words = [sys.executable, *map(str, command)]
    surroundings = {**os.environ, "HF_HUB_OFFLINE": "1", **variables}
    done = subprocess.run(words, env=surroundings, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, shapes: Dataset) -> list[str]:
    """Options of the recipe that name a dataset and a request."""
    folder = tmp_path_factory.mktemp("data")
    shapes.save_to_disk(folder / "shapes")
    (folder / "ids.txt").write_text("\n".join(shapes["id"][::9]))
    return ["--unlearn_request", str(folder / "ids.txt"), "--dataset_name", str(folder / "shapes")]


@pytest.fixture(scope="module")
def adapter_run(tmp_path_factory: pytest.TempPathFactory, tiny_clip: Path, data: list[str]) -> Path:
    """The folder of a method that the recipe ran with `--use_peft`."""
    folder = tmp_path_factory.mktemp("lora")
    before = folder_hash(tiny_clip)
    settings = ["--use_peft", "--lora_r", "4", "--lora_alpha", "8", "--lora_dropout", "0"]
    settings += ["--lora_target_modules", "q_proj", "v_proj", "--methods", "alignment_calibration"]
    settings += ["--num_train_epochs", "2", "--learning_rate", "1e-2", "--per_device_train_batch_size", "16"]
    settings += ["--model_name_or_path", str(tiny_clip), "--output_dir", str(folder / "out"), "--use_cpu", "true"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_UNLEARN_CACHE", str(folder / "cache"))
        run_methods([*data, *settings], family="clip")
    assert folder_hash(tiny_clip) == before
    return folder / "out" / "alignment_calibration"


@pytest.fixture
def run(adapter_run: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(adapter_run, tmp_path / "alignment_calibration"))


def failures(report: VerificationReport) -> set[str]:
    return {line.subject for line in report.statements if line.fails}


def test_the_run_leaves_the_adapter_alone_with_its_records(adapter_run: Path, tiny_clip: Path) -> None:
    names = {path.name for path in adapter_run.iterdir()}
    assert {
        "adapter_model.safetensors",
        "adapter_config.json",
        "README.md",
        "unlearning.json",
        "evaluation.json",
    } <= names
    assert {"processor_config.json", "tokenizer.json", "assets"} <= names
    assert not names & {"model.safetensors", "config.json"}
    manifest = UnlearningManifest.load(adapter_run)
    assert manifest.hyper_parameters.items() >= {"lora_r": 4, "lora_alpha": 8, "lora_dropout": 0.0}.items()
    assert manifest.base_model.sha256 == weights_sha256(tiny_clip) != manifest.weights_sha256
    card = (adapter_run / "README.md").read_text()
    assert "library_name: peft" in card and "base_model_relation: adapter" in card
    assert "PeftModel.from_pretrained(base" in card and "merge_and_unload()` gives a plain checkpoint" in card
    assert not failures(verify_repo(adapter_run, base=tiny_clip))


def test_what_was_measured_is_what_loads(adapter_run: Path, data: list[str], tiny_clip: Path, tmp_path: Path, capsys):
    command = ["evaluate", str(adapter_run), "--base", str(tiny_clip), "--dataset", data[-1], *data[:2]]
    assert ends(*command, "--output_dir", tmp_path / "table", "--use_cpu", "true") == 0
    rows = {r["method"]: r["metrics"] for r in json.loads((tmp_path / "table" / "results.json").read_text())["rows"]}
    recorded = json.loads((adapter_run / "evaluation.json").read_text())["metrics"]
    for name in ("cosine_retain", "cosine_unlearn", "cosine_test", "forgetting_score"):
        assert rows["alignment_calibration"][name] == pytest.approx(recorded[name], abs=1e-4)
    capsys.readouterr()
    assert ends("verify", *command[1:], "--use_cpu", "true") == 0
    verified = capsys.readouterr().out.splitlines()
    assert [line for line in verified if "recomputed and holds    metrics after: " in line]
    assert [line for line in verified if "recomputed and holds    metrics before: " in line]
    assert recorded["cosine_unlearn"] != pytest.approx(rows["before"]["cosine_unlearn"], abs=0.1)


def test_a_stranger_loads_and_verifies_the_adapter(run: Path, tiny_clip: Path, hub: LocalHub, tmp_path: Path) -> None:
    publish_run(run, REPO, show_samples=True)
    files = hub.files(REPO)
    assert {"adapter_model.safetensors", "adapter_config.json", "README.md"} <= set(files)
    assert not {"model.safetensors", "config.json", "adapter_model.bin"} & set(files)
    config = json.loads(files["adapter_config.json"])
    assert config["base_model_name_or_path"] == f"local/{tiny_clip.name}"
    assert str(tiny_clip.parent).encode() not in hub.everything_received()
    done = python("-c", STRANGER, REPO, tiny_clip, "", **environment(hub, tmp_path / "home"))
    theirs, through_us, *lines = done.splitlines()
    model, processor = load_encoder(str(run))
    size = processor.image_processor.crop_size["height"]
    pixels = torch.linspace(-1, 1, 3 * size * size).view(1, 3, size, size)
    with torch.inference_mode():
        expected = float(model.eval().get_image_features(pixel_values=pixels).pooler_output.double().sum())
    assert float(theirs) == float(through_us) == pytest.approx(expected, rel=1e-9)
    assert not [line for line in lines if line.startswith("does not hold")]
    held = [line for line in lines if line.startswith("recomputed and holds")]
    for subject in (" weights: SHA-256", "adapter's base", " base weights: SHA-256", "adapter_config.json"):
        assert any(subject in line for line in held), subject


def test_an_adapter_whose_base_is_on_the_hub_loads_by_its_name(run: Path, tiny_clip: Path, hub: LocalHub) -> None:
    base = hub_model(hub, tiny_clip)
    manifest = UnlearningManifest.load(run)
    pinned = {**vars(manifest.base_model), "name_or_path": "org/base", "revision": base}
    UnlearningManifest(**{**vars(manifest), "base_model": type(manifest.base_model)(**pinned)}).save(run)
    named = {"base_model_name_or_path": "org/base", "revision": base}
    rewrite(run / "adapter_config.json", **named)
    write_card(run)
    with pytest.raises(UserError, match="An adapter cannot replace org/base"):
        publish_run(run, "org/base", create_pr=True, show_samples=True)
    publish_run(run, REPO, show_samples=True)
    assert json.loads(hub.files(REPO)["adapter_config.json"]).items() >= named.items()
    assert type(load_encoder(REPO)[0]).__name__ == "PeftModel"
    assert not failures(verify_repo(REPO, base=tiny_clip))


def hub_model(hub: LocalHub, folder: Path) -> str:
    """Put a model on the Hub and return its commit."""
    from huggingface_hub import HfApi

    HfApi().create_repo("org/base")
    return HfApi().upload_folder(repo_id="org/base", folder_path=folder).oid


def rewrite(path: Path, **fields: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("tamper", "named"),
    [
        (lambda run: flip(run / "adapter_model.safetensors"), {"weights"}),
        (lambda run: rewrite(run / "adapter_config.json", r=5), {"adapter_config.json"}),
        (
            lambda run: rewrite(run / "adapter_config.json", base_model_name_or_path="org/another"),
            {"adapter_config.json", "adapter's base"},
        ),
        (lambda run: (run / "model.safetensors").write_bytes(b"another model"), {"weights"}),
        (
            lambda run: rewrite(run / "adapter_config.json", auto_mapping={"parent_library": "evil"}),
            {"adapter_config.json", "code"},
        ),
    ],
    ids=["a byte of the adapter", "its settings", "its base", "a model beside it", "a module to import"],
)
def test_what_was_tampered_with_is_named(run: Path, tamper, named: set[str]) -> None:
    tamper(run)
    assert failures(verify_repo(run)) == named


def test_an_adapter_that_is_multiplied_by_zero_changes_nothing(run: Path, tiny_clip: Path) -> None:
    """Its weights are other than zero all the same."""
    rewrite(run / "adapter_config.json", lora_alpha=0)
    assert failures(verify_repo(run, base=tiny_clip)) == {"adapter_config.json", "tensors"}


def test_pickled_adapters_are_neither_sent_nor_loaded(run: Path, hub: LocalHub) -> None:
    torch.save({}, run / "adapter_model.bin")
    result = publish_run(run, REPO, dry_run=True, show_samples=True)
    assert "adapter_model.bin" in result.kept_back
    (run / "adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match=r"holds no adapter_model.safetensors; pickled weights can run code"):
        load_encoder(str(run))


def test_a_published_adapter_replaces_a_model_and_its_config(run: Path, finished_run: Path, hub: LocalHub) -> None:
    publish_run(finished_run, REPO)
    assert set(publish_run(run, REPO, show_samples=True).removed or ()) >= {"config.json", "model.safetensors"}
    assert verify_repo(REPO).ok
    back = publish_run(finished_run, REPO)
    assert set(back.removed or ()) >= {"adapter_config.json", "adapter_model.safetensors"}
    assert verify_repo(REPO).ok


def test_another_base_is_refused(run: Path, base: Path) -> None:
    with pytest.raises(UserError, match="is not the base model of this adapter"):
        load_encoder(str(run), base=str(base))


def test_an_audit_takes_an_adapter_as_it_takes_a_model(run: Path) -> None:
    from hf_unlearn.audit.encoders import LocalEncoder

    encoder = LocalEncoder(str(run))
    model, _ = load_encoder(str(run))
    assert encoder.describe()["weights_sha256"] == weights_sha256(run)
    texts = encoder.embed_texts(["a red circle"])
    assert texts.shape == (1, model.config.projection_dim)


def test_publishing_and_verifying_load_neither_torch_nor_peft() -> None:
    modules = "hf_unlearn.hub.publishing, hf_unlearn.hub.verification, hf_unlearn.hub.trainer_push"
    script = f"import sys, {modules}; print({{'torch', 'transformers', 'peft'}} & set(sys.modules))"
    assert python("-c", script).strip() == "set()"
