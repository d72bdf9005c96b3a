"""``se``: squeeze and excitation (Hu et al., CVPR 2018) at the end of residual branches, starting as the identity."""

from dataclasses import dataclass
from typing import ClassVar

from timm.layers import SEModule
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
class SEOptions:
    """Options of the layer.

    Attributes:
        ratio: r, channels ÷ width of the bottleneck inside.
    """

    ratio: int = 16

    def __post_init__(self) -> None:
        if not is_whole(self.ratio, 1):
            raise ValueError(f"ratio={self.ratio!r}: a whole number >= 1 is needed")


@dataclass(frozen=True)
class SEConfig(AttentionOptions):
    """Where it goes; see there."""


def _behind(channels: int, options: SEOptions) -> nn.Module:
    """timm's module, whose last layer is zero: its gate is 1."""
    width = max(1, channels // options.ratio)
    layer = built_alike(lambda: SEModule(channels, rd_channels=width, gate_layer=NeutralSigmoid))
    silence(layer.get_submodule("fc2"))
    return layer


register_layer(LayerKind("se", SEOptions, behind=_behind))


def _added_cost(channels: int, height: int, width: int, ratio: int = 16) -> OpCost:
    """Equations 7 to 16 of Table 1 (docs/performance.md)."""
    places, squeezed = height * width, channels // ratio
    pooling, product, sigmoid = channels * places, channels * places, 4 * channels
    squeeze, relu, excitation = squeezed * channels, squeezed, channels * squeezed
    flops = pooling + squeeze + relu + excitation + sigmoid + product
    return OpCost(squeeze + excitation, flops, channels + squeezed + channels + channels * places)


@register
class SE:
    """See the module."""

    name: ClassVar[str] = "se"
    adds: ClassVar[bool] = True
    Config: ClassVar[type] = SEConfig
    evidence: ClassVar[Kind] = "none"
    changes: ClassVar[str] = "a gate for each channel, from the mean over the map, is added; it starts at 1"
    where: ClassVar[str] = "at the end of residual branches; behind chosen convolutions"
    overhead: ClassVar[Overhead] = Overhead(
        "SE",
        _added_cost,
        lambda channels: _behind(channels, SEOptions()),
        {
            (512, 112, 112): ("12.8", 25.694336),
            (512, 56, 56): ("3.2", 6.426752),
            (512, 28, 28): (".837", 1.609856),
        },
    )

    def plan(self, graph: ModelGraph, selection: Selection, config: SEConfig, evidence: Evidence) -> Proposal:
        return plan_attention(graph, selection, config, ("se", {"ratio": config.ratio}))
