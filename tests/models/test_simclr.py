import torch
import torch.nn.functional as F

from hf_unlearn.models.simclr import SimCLRConfig, SimCLRModel

SMALL = SimCLRConfig(stem="imagenet", width=4, projection_dim=8)


def test_both_views_share_the_batch_statistics() -> None:
    torch.manual_seed(0)
    model = SimCLRModel(SMALL).train()
    views = torch.randn(5, 2, 3, 32, 32)
    outputs = model(views)
    joined = F.normalize(model.get_projected_features(torch.cat([views[:, 0], views[:, 1]])), dim=-1)
    torch.testing.assert_close(torch.cat([outputs.x_embeds, outputs.y_embeds]), joined, atol=1e-5, rtol=1e-4)


def test_the_gradient_reaches_every_weight() -> None:
    torch.manual_seed(0)
    model = SimCLRModel(SMALL).train()
    outputs = model(torch.randn(4, 2, 3, 32, 32))
    (outputs.x_embeds * outputs.y_embeds.roll(1, 0)).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_the_temperature_is_the_papers_and_is_saved(tmp_path) -> None:
    assert SimCLRConfig().temperature == 0.5
    SimCLRConfig(temperature=0.2).save_pretrained(tmp_path)
    assert SimCLRConfig.from_pretrained(tmp_path).temperature == 0.2
