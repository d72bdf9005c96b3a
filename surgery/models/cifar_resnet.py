"""ResNets for small images: timm's, with the stem that CIFAR networks have."""

from collections.abc import Sequence

import timm
from torch import nn

from surgery.checkpoint.build_budget import LARGEST
from surgery.checkpoint.source import register_builder
from surgery.core.errors import is_whole

LAYERS = (3, 4, 6, 3)
STEM_WIDTH = 64  # what timm gives to a ResNet whose stem is one convolution, whatever its channels are


@register_builder("cifar_resnet")
def cifar_resnet(
    layers: Sequence[int] = LAYERS,
    channels: Sequence[int] = (64, 128, 256, 512),
    num_classes: int = 10,
    stem_stride: int = 1,
) -> nn.Module:
    """timm's ``ResNet`` of bottlenecks behind one 3×3 convolution instead of a 7×7 and a max-pooling.

    Takes (N, 3, H, W). As it is, the ResNet-50 that papers train on CIFAR.

    Args:
        layers: bottlenecks per stage.
        channels: width of the 3×3 convolutions of each stage; the stage's output is four times as wide.
        num_classes: outputs.
        stem_stride: of the stem, which is 64 wide: 1, or 2 for networks that must be cheap.

    Raises:
        ValueError: other than four layers and channels, or a stride other than 1 and 2.
    """
    if len(layers) != 4 or len(channels) != 4:
        raise ValueError(
            f"layers={list(layers)!r:.80} and channels={list(channels)!r:.80}: "
            "one of each for the four stages is needed"
        )
    if not all(is_whole(n, 1, LARGEST) for n in (*layers, *channels)):
        raise ValueError(f"layers={list(layers)!r:.80} and channels={list(channels)!r:.80}: whole numbers are needed")
    if stem_stride not in (1, 2):
        raise ValueError(f"stem_stride={stem_stride}: 1 or 2 is needed")
    network = timm.create_model(
        "resnet50",
        layers=tuple(layers),
        channels=tuple(channels),
        num_classes=num_classes,
        pretrained_cfg_overlay={"input_size": (3, 32, 32), "pool_size": None, "crop_pct": 1.0},
    )
    network.conv1 = nn.Conv2d(3, STEM_WIDTH, 3, stem_stride, 1, bias=False)
    nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
    network.maxpool = nn.Identity()
    return network
