"""``cbam``: channel and spatial attention (Woo et al., ECCV 2018) in residual branches, starting as the identity."""

from dataclasses import dataclass
from typing import ClassVar

from timm.layers.cbam import CbamModule
from torch import nn

from surgery.core.errors import is_whole
from surgery.graph import ModelGraph
from surgery.methods.planners.attention import AttentionOptions, plan_attention
from surgery.methods.planners.neutral_gate import NeutralSigmoid, built_alike, silence
from surgery.planning.evidence import Evidence, Kind
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


@register
class CBAM:
    """See the module."""

    name: ClassVar[str] = "cbam"
    adds: ClassVar[bool] = True
    Config: ClassVar[type] = CBAMConfig
    evidence: ClassVar[Kind] = "none"
    changes: ClassVar[str] = "gates for each channel and then for each pixel, by mean and maximum, are added at 1"
    where: ClassVar[str] = "at the end of residual branches; behind chosen convolutions"

    def plan(self, graph: ModelGraph, selection: Selection, config: CBAMConfig, evidence: Evidence) -> Proposal:
        return plan_attention(graph, selection, config, ("cbam", {"ratio": config.ratio, "kernel": config.kernel}))
