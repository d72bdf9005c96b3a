"""``dwp``: depth-wise pooling, the squeeze without parameters (FACS, "DWP"; its Table 2 has DWP-ResNet-50).

Each output channel is the maximum or the mean of a window of consecutive input channels, by default of the
ζ = C / C_out that a squeeze would mix. The control of learned squeezes: what pooling alone gives.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from surgery.core.errors import SurgeryError, check_choice, is_whole
from surgery.core.surgery_layer import OpCost, SurgeryLayer
from surgery.graph import ModelGraph
from surgery.methods.planners.insertion import plan_insertion
from surgery.methods.planners.squeeze import plan_squeeze, squeeze_plan_notes
from surgery.methods.planners.squeeze_options import SqueezeOptions
from surgery.planning.decision import Decision
from surgery.planning.evidence import Evidence, Kind
from surgery.planning.registry import Proposal, register
from surgery.planning.selection import Selection
from surgery.planning.sites import Skipped
from surgery.transforms.layer_kinds import Insertion, LayerKind, register_layer
from surgery.transforms.subsets import subset_bounds

OPERATORS = ("max", "avg")
NORM_PLACES = ("none", "after")


class DepthwisePool(SurgeryLayer):
    """Maximum or mean over windows of consecutive channels.

    Args:
        in_channels, out_channels: C and C_out <= C.
        operator: ``max`` or ``avg``.
        window: channels in a window; default: as far as the next window's first channel.
        step: channels from a window's first to the next one's; default: C / C_out, in balanced steps. With a window
            longer than that, neighbours share channels. A window ends with the last channel.
        stride: grid of the map on which it is computed.

    Shape: (N, C, H, W) → (N, C_out, ⌈H / stride⌉, ⌈W / stride⌉), any floating dtype.

    Raises:
        SurgeryError: the windows do not begin inside the C channels.
    """

    keeps_sign = True

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        operator: str = "max",
        window: int | None = None,
        step: int | None = None,
        stride: tuple[int, int] = (1, 1),
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels, self.operator = in_channels, out_channels, operator
        self.window, self.step, self.stride = window, step, stride
        self.windows = _windows(in_channels, out_channels, window, step)
        lengths = {end - start for start, end in self.windows}
        self.even = in_channels == sum(end - start for start, end in self.windows) and len(lengths) == 1

    def forward(self, x: Tensor) -> Tensor:
        if self.stride != (1, 1):
            x = x[:, :, :: self.stride[0], :: self.stride[1]]
        if self.even:
            return self._reduced(x.unflatten(1, (self.out_channels, -1)), 2)
        return torch.stack([self._reduced(x[:, start:end], 1) for start, end in self.windows], 1)

    def _reduced(self, x: Tensor, dim: int) -> Tensor:
        return x.amax(dim) if self.operator == "max" else x.mean(dim)

    def cost(self, in_shape: tuple[int, ...], out_shape: tuple[int, ...]) -> OpCost:
        """A comparison or an addition for each channel of a window but one."""
        pixels = out_shape[2] * out_shape[3]
        return OpCost(0, sum(end - start - 1 for start, end in self.windows) * pixels, out_shape[1] * pixels)

    def extra_repr(self) -> str:
        shown = f"{self.in_channels}, {self.out_channels}, operator={self.operator}"
        shown += "" if self.window is None else f", window={self.window}"
        shown += "" if self.step is None else f", step={self.step}"
        return shown if self.stride == (1, 1) else f"{shown}, stride={self.stride}"


def _windows(channels: int, outputs: int, window: int | None, step: int | None) -> list[tuple[int, int]]:
    """First channel and the one after the last of each window."""
    bounds = subset_bounds(channels, outputs) if step is None else [i * step for i in range(outputs + 1)]
    if bounds[outputs - 1] >= channels:
        raise SurgeryError(f"step={step}: {outputs} windows do not begin inside {channels} channels")
    ends = bounds[1:] if window is None else [start + window for start in bounds[:-1]]
    return [(start, min(end, channels)) for start, end in zip(bounds[:-1], ends, strict=True)]


@dataclass(frozen=True)
class DepthwisePoolOptions:
    """Options of the layer.

    Attributes:
        operator, window, step: see :class:`DepthwisePool`.
    """

    operator: str = "max"
    window: int | None = None
    step: int | None = None

    def __post_init__(self) -> None:
        check_choice("operator", self.operator, OPERATORS)
        for name in ("window", "step"):
            value = getattr(self, name)
            if value is not None and not is_whole(value, 1):
                raise ValueError(f"{name}={value!r}: a whole number >= 1, or None, is needed")


@dataclass(frozen=True)
class DepthwisePoolConfig(DepthwisePoolOptions, SqueezeOptions):
    """Where it goes (:class:`SqueezeOptions`) and how it pools.

    Attributes:
        norm: ``after`` keeps the norm that followed a replaced convolution, ``none`` drops it.
    """

    norm: str = "none"

    def __post_init__(self) -> None:
        SqueezeOptions.__post_init__(self)
        DepthwisePoolOptions.__post_init__(self)
        check_choice("norm", self.norm, NORM_PLACES)

    def layer(self) -> tuple[str, dict[str, Any]]:
        """Kind of layer and its options."""
        return "dwp", {field.name: getattr(self, field.name) for field in dataclasses.fields(DepthwisePoolOptions)}


def _replacing(conv: nn.Conv2d, options: DepthwisePoolOptions) -> nn.Module:
    stride = (int(conv.stride[0]), int(conv.stride[1]))
    return DepthwisePool(conv.in_channels, conv.out_channels, **dataclasses.asdict(options), stride=stride)


def _inserted(channels: int, squeezed: int, options: DepthwisePoolOptions) -> Insertion:
    return Insertion(DepthwisePool(channels, squeezed, **dataclasses.asdict(options)))


register_layer(LayerKind("dwp", DepthwisePoolOptions, _replacing, _inserted))


@register
class DepthwisePooling:
    """See the module."""

    name: ClassVar[str] = "dwp"
    by_site: ClassVar[bool] = True
    Config: ClassVar[type] = DepthwisePoolConfig
    evidence: ClassVar[Kind] = "none"
    changes: ClassVar[str] = "a squeeze convolution becomes the maximum or mean of windows of consecutive channels"
    where: ClassVar[str] = "squeeze 1×1 convolutions; before spatial convolutions (modes downscale, prune)"

    def plan(
        self, graph: ModelGraph, selection: Selection, config: DepthwisePoolConfig, evidence: Evidence
    ) -> Proposal:
        if config.mode == "squeeze":
            return plan_squeeze(graph, selection, config, config.layer(), keep_norm=config.norm == "after")
        return plan_insertion(graph, selection, config, config.layer())

    def notes(
        self, graph: ModelGraph, config: DepthwisePoolConfig, decisions: Sequence[Decision], skipped: Sequence[Skipped]
    ) -> tuple[str, ...]:
        """What a reader should know of the plan."""
        return squeeze_plan_notes(graph, config, config.layer(), decisions, skipped)
