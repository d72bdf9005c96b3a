"""``fbs-squeeze``: the top C/ζ channels of a map as its squeeze (FACS, "Dynamic Pruning vs FACS").

The FACS paper's adaptation of Feature Boosting and Suppression to channel squeezing, its control: the predictor has
C × C weights, and the place of a channel in the output changes from image to image.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.fx
from torch import Tensor, nn

from surgery.core.surgery_layer import OpCost, SurgeryLayer
from surgery.graph import ModelGraph
from surgery.methods.fbs.saliency_start import SPREAD
from surgery.methods.fbs.winner_take_all import (
    active_indices,
    mean_magnitude,
    mean_saliency,
    saliencies,
    winner_take_all,
)
from surgery.methods.planners.squeeze import plan_squeeze, squeeze_plan_notes
from surgery.methods.planners.squeeze_options import SqueezeOptions
from surgery.planning.decision import Decision
from surgery.planning.evidence import Evidence, Kind
from surgery.planning.registry import Proposal, register
from surgery.planning.selection import Selection
from surgery.planning.sites import Skipped
from surgery.transforms.layer_kinds import LayerKind, register_layer

torch.fx.wrap("top_channels")  # one call in what fx traces: symbolic_trace, feature extractors


class TopChannels(SurgeryLayer):
    """The most salient channels of each image, in ascending order of their numbers, times their saliency.

    Saliency g = ReLU(W · mean|x| + b) of every input channel, in float32 at least, divided by its mean over the
    channels. ``saliency.bias`` is b − ``constant``, which half precisions keep.

    Args:
        in_channels, out_channels: C and C_out <= C.
        stride: grid of the map on which the channels are taken; saliency is pooled over all of it.
        constant: what is added to the bias.

    Shape: (N, C, H, W) → (N, C_out, ⌈H / stride⌉, ⌈W / stride⌉), or both without N; any
    floating dtype.
    """

    keeps_sign = True

    def __init__(
        self, in_channels: int, out_channels: int, stride: tuple[int, int] = (1, 1), constant: float = 1.0
    ) -> None:
        super().__init__()
        self.constant = constant
        self.in_channels, self.out_channels, self.stride = in_channels, out_channels, stride
        self.saliency = nn.Linear(in_channels, in_channels)

    @classmethod
    def from_conv(cls, conv: nn.Conv2d, constant: float = 1.0) -> "TopChannels":
        """In the place of a 1×1 convolution: W = 0, and channels that it weighed more are a little more salient."""
        layer = cls(conv.in_channels, conv.out_channels, (int(conv.stride[0]), int(conv.stride[1])), constant)
        layer.to(conv.weight.device, conv.weight.dtype)
        with torch.no_grad():
            weighed = conv.weight.abs().sum((0, 2, 3))
            relative = (weighed - weighed.mean()) / weighed.std(correction=0).clamp_min(1e-12)
            layer.saliency.weight.zero_()
            layer.saliency.bias.copy_(1.0 - constant + SPREAD * relative.clamp(-3, 3))
        return layer

    def forward(self, input: Tensor) -> Tensor:  # named as a convolution's
        saliency = (self.saliency.weight, self.saliency.bias, self.constant)
        return top_channels(input, saliency, self.out_channels, self.stride)

    def cost(self, in_shape: tuple[int, ...], out_shape: tuple[int, ...]) -> OpCost:
        """The predictor's multiply-accumulates; pooling, ranking and boosting besides."""
        places, macs = out_shape[2] * out_shape[3], self.in_channels**2
        ranking = sum(self.in_channels - i for i in range(1, self.out_channels + 1))
        pooling, boosting = self.in_channels * in_shape[2] * in_shape[3], self.out_channels * places
        return OpCost(macs, macs + pooling + ranking + boosting, boosting + 2 * self.in_channels)

    def extra_repr(self) -> str:
        shown = f"{self.in_channels}, {self.out_channels}"
        return shown if self.stride == (1, 1) else f"{shown}, stride={self.stride}"


def top_channels(x: Tensor, predictor: tuple[Tensor, Tensor, float], count: int, stride: tuple[int, int]) -> Tensor:
    """What the layer computes, by the weight, the bias and the constant of its saliencies."""
    if x.ndim == 3:
        return top_channels(x[None], predictor, count, stride)[0]
    saliency = saliencies(mean_magnitude(x), *predictor)
    saliency = saliency / mean_saliency(saliency)
    indices = active_indices(winner_take_all(saliency, count), count)
    if stride != (1, 1):
        x = x[:, :, :: stride[0], :: stride[1]]
    kept = torch.gather(x, 1, indices[:, :, None, None].expand(-1, -1, *x.shape[2:]))
    return kept * saliency.gather(1, indices).to(x.dtype)[:, :, None, None]


@dataclass(frozen=True)
class TopChannelsOptions:
    """Options of the layer.

    Attributes:
        constant: what is added to the saliencies' bias: 1, or 0 in files that do not say.
    """

    constant: float = 0.0

    def __post_init__(self) -> None:
        if self.constant not in (0, 1):
            raise ValueError(f"constant={self.constant!r:.80}: 0 or 1 is needed")


@dataclass(frozen=True)
class TopChannelsConfig(SqueezeOptions):
    """Where it goes; see there."""

    @classmethod
    def modes(cls) -> tuple[str, ...]:
        return ("squeeze",)

    def layer(self) -> tuple[str, dict[str, Any]]:
        """Kind of layer and its options."""
        return "fbs-squeeze", {"constant": 1.0}


def _replacing(conv: nn.Conv2d, options: TopChannelsOptions) -> nn.Module:
    return TopChannels.from_conv(conv, options.constant)


register_layer(LayerKind("fbs-squeeze", TopChannelsOptions, _replacing))


@register
class FBSSqueeze:
    """See the module."""

    name: ClassVar[str] = "fbs-squeeze"
    Config: ClassVar[type] = TopChannelsConfig
    evidence: ClassVar[Kind] = "none"
    changes: ClassVar[str] = (
        "a squeeze convolution becomes the most salient of its input channels, chosen image by image"
    )
    where: ClassVar[str] = "squeeze 1×1 convolutions"

    def plan(self, graph: ModelGraph, selection: Selection, config: TopChannelsConfig, evidence: Evidence) -> Proposal:
        return plan_squeeze(graph, selection, config, config.layer())

    def notes(
        self, graph: ModelGraph, config: TopChannelsConfig, decisions: Sequence[Decision], skipped: Sequence[Skipped]
    ) -> tuple[str, ...]:
        """What a reader should know of the plan."""
        return squeeze_plan_notes(graph, config, config.layer(), decisions, skipped)
