"""Let the convolutions of a region of a network work on two maps."""

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn

from surgery.core.errors import SurgeryError, check_choice
from surgery.methods.octave.maps import EachMap, Merge, RegionConv, RegionEdge, RegionNorm, Split
from surgery.methods.octave.scales import POOLINGS, UPSAMPLINGS, ConvShape, Scales, split_channels
from surgery.transforms.field_checks import module_name, module_names
from surgery.transforms.modules_by_name import put, submodule
from surgery.transforms.transform import CALL, Choice, Transform, transform


@transform("octave_region")
@dataclass(frozen=True)
class OctaveRegion(Transform):
    """Between ``first`` and ``last``, which take and give one map, values lie on two, split by channel.

    Attributes:
        first, last: the region's first and last module; a first one that is a convolution reads the whole map itself.
        convs, norms: its convolutions and BatchNorms.
        others: its modules without parameters that are applied to each map by itself.
        alpha: share of the channels on the coarse map.
        channels: of the map that ``first`` takes.
        pooling, upsampling: of the convolutions (:class:`surgery.methods.octave.scales.ConvShape`).
    """

    first: str
    last: str
    convs: tuple[str, ...]
    norms: tuple[str, ...]
    others: tuple[str, ...]
    alpha: float
    channels: int
    pooling: str = "average"
    upsampling: str = "nearest"

    def __post_init__(self) -> None:
        module_name("first", self.first)
        module_name("last", self.last)
        for name in ("convs", "norms", "others"):
            object.__setattr__(self, name, module_names(name, getattr(self, name)))
        names = [*self.convs, *self.norms, *self.others]
        if not self.convs or len(set(names)) < len(names):
            raise ValueError(f"convs, norms and others are {names!r:.200}: one convolution at least, each module once")
        check_alpha(self.alpha)
        check_choice("pooling", self.pooling, POOLINGS)
        check_choice("upsampling", self.upsampling, UPSAMPLINGS)
        if isinstance(self.channels, bool) or not isinstance(self.channels, int) or not 1 <= self.channels <= 2**17:
            raise ValueError(f"channels={self.channels!r:.80}: a whole number >= 1 is needed")

    def apply(self, model: nn.Module, choice: Choice = None) -> None:
        entry = self.first in self.convs
        for name in self.convs:
            conv = submodule(model, name, nn.Conv2d)
            put(model, name, self._region_conv(conv, name, entry and name == self.first))
        for name in self.norms:
            norm = submodule(model, name, nn.BatchNorm2d)
            if norm.running_mean is None:
                raise SurgeryError(f"{name!r} has no running statistics")
            put(model, name, RegionNorm(norm, split_channels(norm.num_features, self.alpha)))
        for name in self.others:
            put(model, name, EachMap(_unwrapped(model, name, EachMap)))
        split, merge = None if entry else Split(split_channels(self.channels, self.alpha)), Merge(self.upsampling)
        if self.first == self.last:
            put(model, self.first, RegionEdge(_unwrapped(model, self.first), split, merge))
            return
        if split is not None:
            put(model, self.first, RegionEdge(_unwrapped(model, self.first), split=split))
        put(model, self.last, RegionEdge(_unwrapped(model, self.last), merge=merge))

    def _region_conv(self, conv: nn.Conv2d, name: str, entry: bool) -> RegionConv:
        inputs = (conv.in_channels,) if entry else split_channels(conv.in_channels, self.alpha)
        outputs = split_channels(conv.out_channels, self.alpha)
        links = ((0, 0), (1, 1)) if conv.groups > 1 else ()
        try:
            with torch.device("meta"):  # nothing is drawn for what is thrown away
                layer = RegionConv(Scales(inputs, outputs, links=links), self._shape(conv))
        except ValueError as error:
            raise SurgeryError(f"{name!r}: {error}") from None
        layer.weight, layer.bias = cast(nn.Parameter, conv.weight), cast("nn.Parameter | None", conv.bias)
        return layer

    def _shape(self, conv: nn.Conv2d) -> ConvShape:
        return ConvShape(
            _both(conv.kernel_size),
            conv.stride[0],
            _both(conv.padding),
            conv.dilation[0],
            conv.groups,
            conv.bias is not None,
            self.pooling,
            self.upsampling,
            "conv",
        )

    def changed(self) -> tuple[str, ...]:
        """Of what is below an edge of the region, which is wrapped, the edge: it is there before and after."""
        return tuple(dict.fromkeys(self._edge(name) or name for name in self.convs))

    def added(self) -> tuple[str, ...]:
        return tuple(self._after(name) for name in (*self.convs, *self.norms))

    def _after(self, name: str) -> str:
        """What a module is called when the region's edges have been wrapped."""
        edge = self._edge(name)
        return f"{edge}.base{name.removeprefix(edge)}" if edge else name

    def _edge(self, name: str) -> str:
        """The wrapped module that a module is, or is in; "" for none."""
        wrapped = [self.last] if self.first in self.convs else [self.first, self.last]
        return next((edge for edge in wrapped if name == edge or name.startswith(f"{edge}.")), "")

    def work(self, model: nn.Module) -> int:
        return 8 * CALL * (len(self.convs) + len(self.norms) + len(self.others))


def _unwrapped(model: nn.Module, name: str, *kinds: type[nn.Module]) -> nn.Module:
    """A module that is no region's edge yet, and of none of these kinds."""
    module: nn.Module = submodule(model, name)
    if isinstance(module, (RegionEdge, *kinds)):
        raise SurgeryError(f"{name!r} is the edge of a region already, or applied to each map")
    return module


def _both(values: Any) -> tuple[int, int]:
    """Raises ValueError for a padding in words."""
    if not isinstance(values, tuple):
        raise ValueError(f"{values!r} where two numbers of pixels are needed")
    return int(values[0]), int(values[1])


def check_alpha(alpha: Any) -> None:
    """Raise ValueError for what is no share of channels."""
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 < alpha < 1:
        raise ValueError(f"alpha={alpha!r:.80}: a share of the channels, above 0 and below 1, is needed")
