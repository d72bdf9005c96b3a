"""PSPNet: a timm ResNet with output stride 8, pyramid pooling, and an auxiliary head for training."""

from collections.abc import Sequence
from typing import Any, cast

import timm
import torch
from timm.models import FeatureListNet
from torch import Tensor, nn
from torch.nn.functional import interpolate

from surgery.checkpoint.build_budget import LARGEST
from surgery.checkpoint.builder_arguments import check_known, check_timm_name, plain_arguments
from surgery.checkpoint.pretrained_weights import from_cache, weights_at_hand
from surgery.checkpoint.source import register_builder
from surgery.core.errors import is_whole

OUTPUT_STRIDE = 8
MOST_BINS = 16
LARGEST_BIN = 128


def conv_norm_act(inputs: int, outputs: int, kernel: int) -> nn.Sequential:
    """A convolution that keeps height and width, BatchNorm, ReLU."""
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())


class PyramidPooling(nn.Module):
    """Means over ``bins`` × ``bins`` parts of the map, each through a 1×1 convolution, enlarged and put beside it.

    (N, C, H, W) becomes (N, C + len(bins) · (C // len(bins)), H, W).
    """

    def __init__(self, channels: int, bins: Sequence[int]) -> None:
        super().__init__()
        self.bins = tuple(bins)
        width = channels // len(self.bins)
        self.convs = nn.ModuleList(conv_norm_act(channels, width, 1) for _ in self.bins)
        self.out_channels = channels + width * len(self.bins)

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[-2:]
        pooled = (conv(nn.functional.adaptive_avg_pool2d(x, n)) for conv, n in zip(self.convs, self.bins, strict=True))
        return torch.cat([x, *(interpolate(p, size, mode="bilinear", align_corners=False) for p in pooled)], 1)


class PSPNet(nn.Module):
    """Zhao et al., Pyramid Scene Parsing Network (CVPR 2017, arXiv:1612.01105), sections 3.2 and 3.3.

    Takes (N, 3, H, W) and gives logits (N, num_classes, H, W); in training mode a pair of such, the second from the
    auxiliary head, which reads the third stage.
    """

    def __init__(
        self, backbone: FeatureListNet, num_classes: int, bins: Sequence[int], width: int, dropout: float
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.backbone = backbone
        third, fourth = backbone.feature_info.channels()
        self.pyramid = PyramidPooling(fourth, bins)
        self.head = nn.Sequential(
            conv_norm_act(self.pyramid.out_channels, width, 3), nn.Dropout2d(dropout), nn.Conv2d(width, num_classes, 1)
        )
        self.auxiliary = nn.Sequential(
            conv_norm_act(third, width // 2, 3), nn.Dropout2d(dropout), nn.Conv2d(width // 2, num_classes, 1)
        )

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        third, fourth = self.backbone(x)
        logits = self._enlarged(self.head(self.pyramid(fourth)), x)
        return (logits, self._enlarged(self.auxiliary(third), x)) if self.training else logits

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Compute the backbone's activations twice instead of keeping them, as timm's networks can."""
        self.backbone.set_grad_checkpointing(enable)

    @staticmethod
    def _enlarged(logits: Tensor, x: Tensor) -> Tensor:
        return interpolate(logits, x.shape[-2:], mode="bilinear", align_corners=False)


@register_builder("pspnet")
def pspnet(
    backbone: str = "resnet50",
    num_classes: int = 19,
    bins: Sequence[int] = (1, 2, 3, 6),
    width: int = 512,
    dropout: float = 0.1,
    pretrained: bool = False,
    backbone_kwargs: dict[str, Any] | None = None,
) -> PSPNet:
    """A :class:`PSPNet` on a ResNet of timm.

    Args:
        backbone: name of a timm network with four stages whose strides can be dilated (resnet50, resnet101, …).
        num_classes: outputs for each pixel.
        bins: sides of the pooled maps.
        width: of the head's 3×3 convolution; the auxiliary head has half of it.
        dropout: share of channels that each head drops in training.
        pretrained: the backbone's ImageNet weights (a download).
        backbone_kwargs: of the backbone's builder.

    Raises:
        ValueError: a width or bins that cannot be, or a backbone without output stride 8.
        SourceError: no such backbone in timm's registry, or arguments that are none of its architecture.
    """
    _check_head(width, bins)
    return PSPNet(_dilated_backbone(backbone, pretrained, backbone_kwargs or {}), num_classes, bins, width, dropout)


def _check_head(width: int, bins: Sequence[int]) -> None:
    if (
        not is_whole(width, 2, LARGEST)
        or not 0 < len(bins) <= MOST_BINS
        or not all(is_whole(n, 1, LARGEST_BIN) for n in bins)
    ):
        raise ValueError(
            f"width={width!r:.80}, bins={list(bins)!r:.80}: a width of at least 2 and at most {MOST_BINS} sides from 1 "
            f"to {LARGEST_BIN} are needed"
        )


def _dilated_backbone(name: str, pretrained: bool, kwargs: dict[str, Any]) -> FeatureListNet:
    """The feature maps of a timm network's last two stages, at output stride 8."""
    check_timm_name(name)
    builder_kwargs = plain_arguments(kwargs)
    check_known(timm.model_entrypoint(name), builder_kwargs, shared=True)
    features: dict[str, Any] = {"features_only": True, "output_stride": OUTPUT_STRIDE, "out_indices": (3, 4)}
    with weights_at_hand("timm", name, pretrained):
        cached = from_cache(name) if pretrained else {}
        created = timm.create_model(name, pretrained=pretrained, **features, **builder_kwargs, **cached)
    backbone = cast(FeatureListNet, created)
    if backbone.feature_info.reduction() != [OUTPUT_STRIDE] * 2:
        raise ValueError(f"backbone={name!r} cannot have output stride {OUTPUT_STRIDE}; resnet50 and its kin can")
    return backbone
