"""``cbam``: channel and spatial attention (Woo et al., ECCV 2018) in residual branches, starting as the identity."""

from dataclasses import dataclass
from typing import ClassVar

from timm.layers.cbam import CbamModule
from torch import nn

from surgery.core.errors import is_whole
from surgery.core.surgery_layer import OpCost
from surgery.graph import ModelGraph
from surgery.methods.planners.attention import AttentionOptions, plan_attention
from surgery.methods.planners.neutral_gate import NeutralSigmoid, built_alike, silence
from surgery.planning.evidence import Evidence, Kind
from surgery.planning.overhead import Overhead
from surgery.planning.registry import Proposal, register
from surgery.planning.selection import Selection
from surgery.transforms.layer_kinds import LayerKind, register_layer


@dataclass(frozen=True)
class CBAMOptions:
    """Options of the layer.

    Attributes:
        ratio: r, channels ÷ width of the channel attention's bottleneck.
        kernel: side of the spatial attention's convolution, an odd number.
    """

    ratio: int = 16
    kernel: int = 7

    def __post_init__(self) -> None:
        if not is_whole(self.ratio, 1):
            raise ValueError(f"ratio={self.ratio!r}: a whole number >= 1 is needed")
        if not is_whole(self.kernel, 1) or self.kernel % 2 == 0:
            raise ValueError(f"kernel={self.kernel!r}: an odd whole number is needed")


@dataclass(frozen=True)
class CBAMConfig(AttentionOptions):
    """Where it goes (:class:`AttentionOptions`).

    Attributes:
        kernel: side of the spatial attention's convolution, an odd number.
    """

    kernel: int = 7

    def __post_init__(self) -> None:
        super().__post_init__()
        CBAMOptions(self.ratio, self.kernel)


def _behind(channels: int, options: CBAMOptions) -> nn.Module:
    """timm's module; what gives the logits of its two gates is zero, so that both are 1."""
    width = max(1, channels // options.ratio)
    layer = built_alike(
        lambda: CbamModule(
            channels, rd_channels=width, spatial_kernel_size=options.kernel, gate_layer=NeutralSigmoid, mlp_bias=True
        )
    )
    for name in ("channel.fc2", "spatial.conv.bn"):
        silence(layer.get_submodule(name))
    return layer


register_layer(LayerKind("cbam", CBAMOptions, behind=_behind))


def _added_cost(channels: int, height: int, width: int, ratio: int = 16) -> OpCost:
    """Equations 17 to 41 of Table 1 (docs/performance.md).

    They count one pass of the perceptron, where the layer makes two, and a spatial convolution of 1×1 (28), where the
    layer's 7×7 takes 98·H·W.
    """
    places, squeezed = height * width, channels // ratio
    perceptron = squeezed * channels + squeezed + channels * squeezed
    by_channel = 3 * channels * places + perceptron + 4 * channels + channels
    by_place = 2 * (channels - 1) * places + 2 * places + 2 * places + 4 * places + channels * places
    written = 2 * channels * places + 5 * places + 4 * channels + squeezed
    return OpCost(2 * squeezed * channels + 2 * places, by_channel + by_place, written)


@register
class CBAM:
    """See the module."""

    name: ClassVar[str] = "cbam"
    adds: ClassVar[bool] = True
    Config: ClassVar[type] = CBAMConfig
    evidence: ClassVar[Kind] = "none"
    changes: ClassVar[str] = "gates for each channel and then for each pixel, by mean and maximum, are added at 1"
    where: ClassVar[str] = "at the end of residual branches; behind chosen convolutions"
    overhead: ClassVar[Overhead] = Overhead(
        "CBAM",
        _added_cost,
        lambda channels: _behind(channels, CBAMOptions()),
        {
            (512, 112, 112): ("38.6", 51.639424),
            (512, 56, 56): ("9.6", 12.916096),
            (512, 28, 28): ("2.4", 3.235264),
        },
    )

    def plan(self, graph: ModelGraph, selection: Selection, config: CBAMConfig, evidence: Evidence) -> Proposal:
        return plan_attention(graph, selection, config, ("cbam", {"ratio": config.ratio, "kernel": config.kernel}))
