"""Backbone, projection head, batch norms and base class of a view encoder, which SimCLR and MoCo share.

The code of this folder travels to the Hub with a model, and may import its own files only.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel, ResNetConfig, initialization
from transformers.modeling_outputs import BaseModelOutputWithPooling

from .view_encoder_operations import AllGather, world_size

BUILT_IN_ATTENTION = (None, "eager", "sdpa", "flex_attention")
RESNETS = {  # type of layer, layers of each stage, and by how much a layer widens its stage
    "resnet18": ("basic", [2, 2, 2, 2], 1),
    "resnet50": ("bottleneck", [3, 4, 6, 3], 4),
}


class ViewEncoderConfig(PreTrainedConfig):
    """What the families share: which backbone, which projection head, which batch norm.

    Args:
        backbone: "resnet18" or "resnet50"; becomes None when `backbone_config` describes another vision model.
        stem: of the ResNets, "cifar" (3x3, stride 1, no pooling) or "imagenet" (7x7, stride 2, max-pool).
        width: of the ResNets, channels of the first stage; 64 is standard, 16 or 32 suit a CPU.
        backbone_config: config of any vision model of transformers with a pooled output, instead of a ResNet.
        image_size: side of a view in pixels.
        projection_dim: d, the dimension of the embeddings.
        projection_batch_norm: whether a batch norm follows the head's first layer.
        sync_batch_norm: take batch statistics over all processes, so that their number does not change the result.

    Raises:
        ValueError: if a choice is unknown.
    """

    backbone: str | None = "resnet18"
    stem: str = "cifar"
    width: int = 64
    backbone_config: dict[str, Any] | PreTrainedConfig | None = None
    image_size: int = 32
    projection_dim: int = 128
    projection_batch_norm: bool = True
    sync_batch_norm: bool = True

    def __post_init__(self, **kwargs: object) -> None:
        if isinstance(self.backbone_config, dict):
            self.backbone_config = AutoConfig.for_model(**self.backbone_config)
        if self.backbone_config is not None:
            self.backbone = None
        elif self.backbone not in RESNETS or self.stem not in ("cifar", "imagenet") or self.width < 1:
            raise ValueError(
                f"No backbone {self.backbone!r} has stem {self.stem!r} and width {self.width}: choose resnet18 "
                "or resnet50, cifar or imagenet and a positive width, or pass the backbone_config of a vision model."
            )
        super().__post_init__(**kwargs)

    @property
    def vision_config(self) -> PreTrainedConfig:
        """Config of the backbone as a transformers model."""
        if isinstance(self.backbone_config, PreTrainedConfig):
            return self.backbone_config
        layer_type, depths, expansion = RESNETS[str(self.backbone)]
        return ResNetConfig(
            embedding_size=self.width,
            hidden_sizes=[self.width * expansion * 2**stage for stage in range(4)],
            layer_type=layer_type,
            depths=depths,
        )


class ViewEncoder(nn.Module):
    """Backbone and two-layer projection head.

    Args:
        config: what to build; weights are random.
        batch_norm_splits: parts of a batch that are normalised on their own, 0 for none (see `SplitBatchNorm`).
    """

    def __init__(self, config: ViewEncoderConfig, batch_norm_splits: int = 0) -> None:
        super().__init__()
        vision_config = config.vision_config
        self.backbone = AutoModel.from_config(vision_config, trust_remote_code=False)
        if config.backbone and config.stem == "cifar":
            convolution = nn.Conv2d(3, config.width, kernel_size=3, padding=1, bias=False)
            self.backbone.embedder = nn.Sequential(convolution, nn.BatchNorm2d(config.width), nn.ReLU())
        features = getattr(vision_config, "hidden_sizes", None) or [vision_config.hidden_size]
        self.projector = nn.Sequential(
            nn.Linear(features[-1], features[-1], bias=not config.projection_batch_norm),
            nn.BatchNorm2d(features[-1]) if config.projection_batch_norm else nn.Identity(),
            nn.ReLU(),
            nn.Linear(features[-1], config.projection_dim),
        )
        if batch_norm_splits:
            _replace_batch_norms(self, SplitBatchNorm, splits=batch_norm_splits)
        else:
            _replace_batch_norms(self, CrossRankBatchNorm, sync=config.sync_batch_norm)
        for norm in self.modules():  # the model counts the batches of all of them in one operation
            if isinstance(norm, CrossRankBatchNorm):
                norm.counts = False

    def features(self, pixel_values: Tensor) -> Tensor:
        """Pooled backbone features `[n, D]` of `[n, 3, H, W]` normalised pixels."""
        return self.backbone(pixel_values).pooler_output.flatten(1)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Projections `[n, d]` of `[n, 3, H, W]` normalised pixels."""
        return self.projector(self.features(pixel_values))


class ViewEncoderModel(PreTrainedModel):
    """What the families share: an encoder of pictures, its features and its projections.

    Args:
        config: what to build; weights are random until loaded.
    """

    config_class = ViewEncoderConfig
    main_input_name = "pixel_values"
    encoder: ViewEncoder
    _ran_in_forward: Sequence[Any] = ()  # batch norms

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Linear):
            # The default standard deviation of .02 makes projections so short that the biases soon outweigh them.
            initialization.kaiming_normal_(module.weight, nonlinearity="relu")

    @classmethod
    def from_vision_pretrained(cls, name: str, **settings: Any) -> Self:
        """Start from a pretrained vision model, with a fresh projection head.

        Args:
            name: Hub id or folder of the vision model.
            settings: fields of the family's config.

        Returns:
            A model whose config describes the backbone, so that reloading it fetches nothing.

        Raises:
            ValueError: if the model is no single vision encoder, or its checkpoint lacks tensors.
        """
        if AutoConfig.from_pretrained(name, trust_remote_code=False)._attn_implementation not in BUILT_IN_ATTENTION:
            raise ValueError(f"{name} asks for an attention implementation from elsewhere: remove it from config.json.")
        backbone, info = AutoModel.from_pretrained(
            name, output_loading_info=True, trust_remote_code=False, use_safetensors=True, dtype="float32"
        )
        if missing := sorted(info["missing_keys"]):
            raise ValueError(f"{name} lacks {missing}, which would be drawn at random: save the whole model.")
        return cls.from_vision_model(backbone, **settings)

    @classmethod
    def from_vision_model(cls, backbone: PreTrainedModel, **settings: Any) -> Self:
        """Start from a vision model that has been loaded; otherwise as `from_vision_pretrained`."""
        if hasattr(backbone.config, "vision_config"):
            raise ValueError(f"{backbone.name_or_path} is an image-text model: pass its vision_model, saved alone.")
        if isinstance(size := getattr(backbone.config, "image_size", None), int):
            settings.setdefault("image_size", size)
        model = cls(cls.config_class(backbone_config=backbone.config, **settings))
        model.encoder.backbone.load_state_dict(backbone.state_dict())
        return model

    def get_image_features(self, pixel_values: Tensor) -> BaseModelOutputWithPooling:
        """Backbone features, before the projection head.

        Args:
            pixel_values: `[n, 3, H, W]`, normalised.

        Returns:
            An output whose `pooler_output` is `[n, D]`, not normalised.
        """
        features = self.encoder.features(pixel_values)
        self.count_batches()
        return BaseModelOutputWithPooling(pooler_output=features)

    def get_projected_features(self, pixel_values: Tensor) -> Tensor:
        """Projections `[n, d]`, not normalised, of `[n, 3, H, W]` normalised pixels."""
        projections = self.encoder(pixel_values)
        self.count_batches()
        return projections

    def count_batches(self, of_forward: bool = False) -> None:
        """Count a training batch of all batch norms that ran since the last time, in one operation.

        An adapter's copies may have run in place of the originals.

        Args:
            of_forward: whether `forward` asks, where mostly those have run that ran the last time.
        """
        if not self.training:
            return
        ran = self._ran_in_forward  # to look them up would take the host as long as 20 launches
        if not (of_forward and ran and all(norm.ran for norm in ran)):
            ran = [norm for norm in self.modules() if isinstance(norm, CrossRankBatchNorm) and norm.ran]
            if of_forward and not torch.compiler.is_compiling():
                self._ran_in_forward = ran
        for norm in ran:
            norm.ran = False
        if ran:
            torch._foreach_add_([norm.num_batches_tracked for norm in ran], 1)


class CrossRankBatchNorm(nn.BatchNorm2d):
    """Batch norm of `[n, C]` or `[n, C, H, W]` whose statistics cover the batches of all processes.

    mean = sum_r n_r mean_r / N and var = sum_r n_r (var_r + (mean_r - mean)^2) / N, with gradient through both, so
    training on R processes equals training on one with the joined batch. Unlike `nn.SyncBatchNorm` it runs on CPUs too.

    Args:
        channels: C.
        eps: added to the variance.
        momentum: share of the batch in the running statistics.
        sync: whether to communicate at all; without it, and with one process, this is PyTorch's batch norm.
    """

    running_mean: Tensor  # type: ignore[assignment]
    running_var: Tensor  # type: ignore[assignment]
    num_batches_tracked: Tensor  # type: ignore[assignment]
    momentum: float  # type: ignore[assignment]

    def __init__(self, channels: int, eps: float = 1e-5, momentum: float = 0.1, sync: bool = True) -> None:
        super().__init__(channels, eps, momentum)
        self.sync = sync
        self.counts, self.ran = True, False

    def _count(self) -> None:
        """Count a training batch, or leave it to the model, which does so for all its layers that ran."""
        if self.training and self.counts:
            self.num_batches_tracked.add_(1)
        self.ran = self.training

    def _check_input_dim(self, input: Tensor) -> None:
        """Accept any number of dimensions, for projection heads as well as feature maps."""

    def _own_batch(self, input: Tensor) -> Tensor:
        """PyTorch's batch norm of this process's batch."""
        self._count()
        given = self.running_mean, self.running_var, self.training, self.momentum, self.eps
        if self.training and input.device.type == "cpu":  # one operation less than the function that chooses a kernel
            return torch.native_batch_norm(input, self.weight, self.bias, *given)[0]
        return F.batch_norm(input, given[0], given[1], self.weight, self.bias, *given[2:])

    def forward(self, input: Tensor) -> Tensor:
        """Normalise `[n, C, ...]` over everything but the channels."""
        if not (self.training and self.sync and world_size() > 1):
            return self._own_batch(input)
        values = input if input.dtype == torch.float64 else input.float()
        var, mean = torch.var_mean(values, [0, *range(2, values.ndim)], correction=0)
        count = mean.new_full((1,), values.numel() / values.shape[1])
        means, variances, counts = AllGather.apply(torch.cat([mean, var, count])).split([len(mean), len(var), 1], dim=1)
        total = counts.sum()
        mean = (counts * means).sum(0) / total
        var = (counts * (variances + (means - mean) ** 2)).sum(0) / total
        self._count()
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * total / (total - 1), self.momentum)
        channels = (1, -1) + (1,) * (values.ndim - 2)
        scale = self.weight * torch.rsqrt(var + self.eps)
        return ((values - mean.view(channels)) * scale.view(channels) + self.bias.view(channels)).to(input.dtype)


class SplitBatchNorm(CrossRankBatchNorm):
    """Batch norm that treats every `splits`-th sample as a batch of its own, as if the batch lay on `splits` devices.

    The running statistics are the mean over the parts. A batch that `splits` does not divide is parted by the greatest
    common divisor.

    Args:
        channels: C.
        eps: added to the variance.
        momentum: share of the batch in the running statistics.
        splits: number of parts.

    Source: MoCo (arXiv 1911.05722, Sec. 3.3, shuffling BN), simulated on one device.
    """

    def __init__(self, channels: int, eps: float = 1e-5, momentum: float = 0.1, splits: int = 8) -> None:
        super().__init__(channels, eps, momentum, sync=False)
        self.splits = splits

    def forward(self, input: Tensor) -> Tensor:
        """Normalise `[n, C, ...]` part by part."""
        splits = math.gcd(len(input), self.splits)
        if not self.training or splits == 1:
            return self._own_batch(input)
        folded = input.reshape(len(input) // splits, splits * self.num_features, *input.shape[2:])
        mean, var, weight, bias = (
            tensor.repeat(splits) for tensor in (self.running_mean, self.running_var, self.weight, self.bias)
        )
        output = F.batch_norm(folded, mean, var, weight, bias, True, self.momentum, self.eps)
        self._count()
        with torch.no_grad():
            self.running_mean.copy_(mean.view(splits, -1).mean(0))
            self.running_var.copy_(var.view(splits, -1).mean(0))
        return output.reshape(input.shape)


def _replace_batch_norms(module: nn.Module, batch_norm: Callable[..., nn.BatchNorm2d], **options: int) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d):
            setattr(module, name, batch_norm(child.num_features, child.eps, child.momentum, **options))
        else:
            _replace_batch_norms(child, batch_norm, **options)
