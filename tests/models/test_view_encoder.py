"""What SimCLR and MoCo share: the backbone, its batch norms, saving, loading and travelling with their code."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
import torch.nn.functional as F
import torchvision
from torch import nn
from transformers import AutoConfig, AutoModel, CLIPConfig, CLIPModel, PreTrainedModel, ViTConfig, ViTModel

from hf_unlearn.models.moco import MoCoModel
from hf_unlearn.models.simclr import SimCLRConfig, SimCLRModel
from hf_unlearn.models.view_encoders.view_encoder import CrossRankBatchNorm, SplitBatchNorm, ViewEncoder

FAMILIES = {"simclr": SimCLRModel, "moco": MoCoModel}
SMALL = {"stem": "imagenet", "width": 4, "projection_dim": 8}

REMOTE = """
import json, sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "hf_unlearn":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Blocked())
import torch
from transformers import AutoModel
pixels = torch.load(sys.argv[1])
for folder in sys.argv[2:]:
    model = AutoModel.from_pretrained(folder, trust_remote_code=True)
    with torch.no_grad():
        torch.save(model(pixels).to_tuple(), folder + "/embeddings.pt")
    print(json.dumps([type(model).__module__.split(".")[0], sum(p.requires_grad for p in model.parameters())]))
"""


def pixels(count: int = 4, seed: int = 0, side: int = 32) -> torch.Tensor:
    return torch.randn(count, 2, 3, side, side, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    torch.manual_seed(0)
    family = FAMILIES[request.param]
    model = family(family.config_class(**SMALL)).train()
    model(pixels())  # so that running statistics, queue and pointer are no initial values
    return model.eval()


@torch.no_grad()
def test_reloading_gives_the_same_embeddings(model: PreTrainedModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path)
    assert type(again) is type(model) and again.config.temperature == model.config.temperature
    for ours, theirs in zip(model(pixels()).to_tuple(), again(pixels()).to_tuple(), strict=True):
        assert torch.equal(ours, theirs)
    assert model.state_dict().keys() == again.state_dict().keys()
    frozen = [{name for name, parameter in m.named_parameters() if not parameter.requires_grad} for m in (model, again)]
    assert frozen[0] == frozen[1]


@torch.no_grad()
def test_code_travels_to_processes_without_the_library(tmp_path: Path) -> None:
    torch.save(pixels(), tmp_path / "pixels.pt")
    models = {str(tmp_path / name): family(family.config_class(**SMALL)).eval() for name, family in FAMILIES.items()}
    for folder, model in models.items():
        model.save_pretrained(folder)
    command = [sys.executable, "-I", "-c", REMOTE, tmp_path / "pixels.pt", *models]
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1", "PATH": ""}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    trainable = [sum(parameter.requires_grad for parameter in model.parameters()) for model in models.values()]
    assert [json.loads(line) for line in result.stdout.splitlines()] == [["transformers_modules", n] for n in trainable]
    for folder, model in models.items():
        for ours, theirs in zip(model(pixels()).to_tuple(), torch.load(folder + "/embeddings.pt"), strict=True):
            assert torch.equal(ours, theirs)


def test_embeddings_have_unit_norm_in_float32_whatever_the_models_dtype(model: PreTrainedModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    half = AutoModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    for encoder in (model, half):
        outputs = encoder(pixels().to(encoder.dtype))
        for embeds in (outputs.x_embeds, outputs.y_embeds):
            assert embeds.dtype == torch.float32 and embeds.shape == (4, 8)
            torch.testing.assert_close(embeds.norm(dim=-1), torch.ones(4))
        assert all(value.dtype == torch.float32 for value in outputs.to_tuple())


def test_features_come_before_the_projection_head(model: PreTrainedModel) -> None:
    views = pixels()[:, 0]
    features = model.get_image_features(views).pooler_output
    assert features.shape == (4, 32)
    projected = model.get_projected_features(views)
    torch.testing.assert_close(model.encoder.projector(features), projected)
    torch.testing.assert_close(F.normalize(projected, dim=-1), model(pixels()).x_embeds)


@pytest.mark.parametrize("backbone", ["resnet18", "resnet50"])
def test_the_resnets_are_torchvisions(backbone: str) -> None:
    config = SimCLRConfig(backbone=backbone, stem="imagenet")
    with torch.device("meta"):
        ours = ViewEncoder(config).backbone
        theirs = getattr(torchvision.models, backbone)()
    theirs.fc = nn.Identity()
    shapes = [sorted(tuple(parameter.shape) for parameter in m.parameters()) for m in (ours, theirs)]
    assert shapes[0] == shapes[1]


def test_the_cifar_stem_keeps_the_resolution() -> None:
    encoder = ViewEncoder(SimCLRConfig(width=4)).eval()
    assert encoder.backbone.embedder(torch.zeros(1, 3, 32, 32)).shape == (1, 4, 32, 32)
    assert encoder.backbone(torch.zeros(1, 3, 32, 32)).last_hidden_state.shape == (1, 32, 4, 4)


@pytest.mark.parametrize("family", FAMILIES.values())
@torch.no_grad()
def test_any_vision_model_is_a_backbone(family: type[PreTrainedModel], tmp_path: Path) -> None:
    config = ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, image_size=16, patch_size=8
    )
    vision = ViTModel(config).eval()
    vision.save_pretrained(tmp_path / "vision")
    model = family.from_vision_pretrained(str(tmp_path / "vision"), projection_dim=4).eval()
    views = pixels(side=16)
    torch.testing.assert_close(model.get_image_features(views[:, 0]).pooler_output, vision(views[:, 0]).pooler_output)
    model.save_pretrained(tmp_path / "model")
    (tmp_path / "vision" / "model.safetensors").unlink()  # reloading must not look for the vision model
    again = AutoModel.from_pretrained(tmp_path / "model")
    assert torch.equal(again(views).y_embeds, model(views).y_embeds)
    assert AutoConfig.from_pretrained(tmp_path / "model").backbone_config.hidden_size == 8


def test_an_image_text_model_is_no_backbone(tmp_path: Path) -> None:
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    config = CLIPConfig(
        text_config={**sizes, "vocab_size": 9},
        vision_config={**sizes, "image_size": 8, "patch_size": 8},
        projection_dim=4,
    )
    CLIPModel(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is an image-text model"):
        SimCLRModel.from_vision_pretrained(str(tmp_path))


@pytest.mark.parametrize("wrong", [{"backbone": "resnet34"}, {"stem": "mnist"}, {"width": 0}])
def test_unknown_backbones_are_named(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=str(next(iter(wrong.values())))):
        SimCLRConfig(**wrong)


@pytest.mark.parametrize("shape", [(8, 3, 5, 5), (12, 3)])
def test_split_batch_norm_normalises_every_part_on_its_own(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    norm = SplitBatchNorm(3, splits=4)
    nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)
    values = torch.randn(shape) * 2 + 1
    parts = [nn.BatchNorm1d(3) if len(shape) == 2 else nn.BatchNorm2d(3) for _ in range(4)]
    expected = torch.empty(shape)
    for index, part in enumerate(parts):
        part.load_state_dict(norm.state_dict())
        expected[index::4] = part(values[index::4]).detach()
    torch.testing.assert_close(norm(values), expected)
    torch.testing.assert_close(norm.running_mean, torch.stack([part.running_mean for part in parts]).mean(0))
    torch.testing.assert_close(norm.running_var, torch.stack([part.running_var for part in parts]).mean(0))
    assert norm.num_batches_tracked == 1
    assert norm(torch.randn(7, *shape[1:])).shape[0] == 7  # a ragged batch is one part
    norm.eval()
    torch.testing.assert_close(
        norm(values), F.batch_norm(values, norm.running_mean, norm.running_var, norm.weight, norm.bias)
    )


def batch_norm_result(rows: slice) -> list[torch.Tensor]:
    """Output, input gradient, weight gradient and running statistics of a training step on some rows of a batch."""
    torch.manual_seed(0)
    norm = CrossRankBatchNorm(3)
    values, cotangent = (
        torch.randn(8, 3, 4, 4) + 100,
        torch.randn(8, 3, 4, 4),
    )  # a large mean asks for a stable variance
    values = values[rows].requires_grad_()
    output = norm(values)
    output.backward(cotangent[rows])
    return [output.detach(), values.grad, norm.weight.grad, norm.running_mean, norm.running_var]


def training_result(family: type[PreTrainedModel], rows: slice) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Gradient of a mean over some rows of a batch after two steps in training mode, and the buffers then."""
    torch.manual_seed(0)
    model = family(family.config_class(**SMALL, queue_size=12) if family is MoCoModel else family.config_class(**SMALL))
    model.train()
    target = torch.randn(8, 8)
    for step in range(2):
        outputs = model(pixels(8, seed=step)[rows])
    (outputs.x_embeds * target[rows]).sum(1).square().mean().backward()
    gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    return gradient, dict(model.named_buffers())


def run_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    norm = batch_norm_result(slice(0, 5) if rank == 0 else slice(5, 8))
    half = slice(0, 4) if rank == 0 else slice(4, 8)
    models = {name: training_result(family, half) for name, family in FAMILIES.items()}
    torch.save((norm, models), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_compute_what_one_computes(tmp_path: Path) -> None:
    multiprocessing.start_processes(run_rank, (str(tmp_path),), nprocs=2, start_method="fork")
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]

    output, gradient, weight_gradient, mean, var = batch_norm_result(slice(None))
    norms = [norm for norm, _ in ranks]
    torch.testing.assert_close(torch.cat([norm[0] for norm in norms]), output, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(torch.cat([norm[1] for norm in norms]), gradient, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(norms[0][2] + norms[1][2], weight_gradient, atol=1e-4, rtol=1e-4)
    for norm in norms:
        torch.testing.assert_close(norm[3], mean)
        torch.testing.assert_close(norm[4], var, atol=1e-5, rtol=1e-5)

    for name, family in FAMILIES.items():
        gradient, buffers = training_result(family, slice(None))
        joined = (ranks[0][1][name][0] + ranks[1][1][name][0]) / 2  # data-parallel training averages gradients
        assert (joined - gradient).norm() < 1e-4 * gradient.norm()
        for rank in ranks:
            torch.testing.assert_close(rank[1][name][1], buffers, atol=1e-5, rtol=1e-4)


def test_the_settings_of_replaced_batch_norms_are_kept() -> None:
    from hf_unlearn.models.view_encoders.view_encoder import _replace_batch_norms

    module = nn.Sequential(nn.BatchNorm2d(3, eps=0.1, momentum=0.5))
    _replace_batch_norms(module, CrossRankBatchNorm, sync=True)
    assert (module[0].eps, module[0].momentum, module[0].sync) == (0.1, 0.5, True)


@pytest.mark.parametrize("family", FAMILIES.values())
def test_initial_weights_depend_on_the_seed_alone(family: type[PreTrainedModel]) -> None:
    states = []
    for _ in range(2):
        torch.manual_seed(3)
        states.append(family(family.config_class(**SMALL)).state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert all(torch.isfinite(value).all() for value in states[0].values())


@pytest.mark.parametrize("family", FAMILIES)
def test_each_batch_norm_counts_the_batches_it_was_trained_on(family: str) -> None:
    model = FAMILIES[family](FAMILIES[family].config_class(**SMALL))
    views = torch.randn(4, 2, 3, 32, 32)
    model.train()(views)
    model.eval()(views)
    model.train()(views)
    model.get_image_features(views[:, 0])
    counts = {name: int(value) for name, value in model.named_buffers() if name.endswith("num_batches_tracked")}
    assert counts == {name: 3 if name.startswith("encoder.backbone") else 2 for name in counts} and counts
