"""Modules for values that lie on two maps, a fine one and a coarse one of half its height and width."""

from collections.abc import Iterable
from typing import Any, cast

import torch
from timm.layers import BatchNormAct2d, DropPath
from torch import Tensor, nn
from torch.nn.functional import batch_norm
from torch.utils._pytree import register_pytree_node
from torchvision.ops import StochasticDepth

from surgery.core.surgery_layer import OpCost, SurgeryLayer, WeightMaps
from surgery.graph.trees import shapes_in
from surgery.methods.octave.goctconv import GOctConv
from surgery.methods.octave.resampling import larger, smaller


class Maps(list[Tensor]):
    """(N, C_i, H_i, W_i), the finest first: what a block passes from layer to layer. Sums are map by map."""

    def __add__(self, other: Iterable[Tensor]) -> "Maps":  # type: ignore[override]
        return Maps(one + two for one, two in zip(self, other, strict=True))

    __radd__ = __add__

    def __iadd__(self, other: Iterable[Tensor]) -> "Maps":  # type: ignore[override]
        for one, two in zip(self, other, strict=True):
            one.add_(two)
        return self


register_pytree_node(Maps, lambda maps: (list(maps), None), lambda maps, _: Maps(maps))


class RegionConv(GOctConv):
    """A gOctConv that takes the place of a convolution, whose parameters keep their names."""

    def forward(self, maps: Any) -> Any:
        outputs = super().forward(maps)
        return Maps(outputs) if isinstance(outputs, list) else outputs


class RegionNorm(SurgeryLayer):
    """A BatchNorm whose channels lie on several maps; parameters and buffers keep their names.

    Args:
        norm: BatchNorm2d or timm's BatchNormAct2d, whose tensors it takes over.
        channels: of each map.
    """

    def __init__(self, norm: nn.BatchNorm2d, channels: tuple[int, ...]) -> None:
        super().__init__()
        self.channels, self.eps, self.momentum = channels, norm.eps, norm.momentum
        self.weight, self.bias = norm.weight, norm.bias
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            self.register_buffer(name, getattr(norm, name))
        own = norm if isinstance(norm, BatchNormAct2d) else None
        self.drop: Any = own.drop if own else nn.Identity()
        self.act: Any = own.act if own else nn.Identity()

    def forward(self, maps: Maps) -> Maps:
        if self.training and self.num_batches_tracked is not None:
            cast(Tensor, self.num_batches_tracked).add_(1)
        statistics = (cast(Tensor, self.running_mean), cast(Tensor, self.running_var))
        means, variances, weights, biases = map(self._split, (*statistics, self.weight, self.bias))
        normalised = (
            batch_norm(x, means[i], variances[i], weights[i], biases[i], self.training, self.momentum or 0.0, self.eps)
            for i, x in enumerate(maps)
        )
        return Maps(self.act(self.drop(x)) for x in normalised)

    def _split(self, tensor: Tensor | None) -> tuple[Tensor | None, ...]:
        return (None,) * len(self.channels) if tensor is None else tensor.split(self.channels)

    def observe(self, x: Any) -> Tensor:
        """Mean and mean square of every channel, for each image: (N, 2 · C), float32."""
        maps = [y.float() for y in x]
        moments = [[y.mean((2, 3)) for y in maps], [y.square().mean((2, 3)) for y in maps]]
        return torch.cat([torch.cat(moment, 1) for moment in moments], 1)

    def start(self, observed: Tensor) -> None:
        """Set the running statistics to those of what was observed."""
        mean, square = observed.double().mean(0).chunk(2)
        cast(Tensor, self.running_mean).copy_(mean)
        cast(Tensor, self.running_var).copy_((square - mean.square()).clamp(min=0))

    def without_norm(self) -> nn.Module:
        return EachMap(self.act) if isinstance(self.drop, nn.Identity) else EachMap(nn.Sequential(self.drop, self.act))

    def weight_maps(self) -> WeightMaps:
        """All of them."""
        return WeightMaps(self.channels, self.channels, per_channel=True)

    def narrowed(self, maps: WeightMaps) -> dict[str, Any]:
        return {"channels": maps.in_channels}

    def cost(self, inputs: Any, outputs: Any) -> OpCost:
        """As a BatchNorm counts: four operations for each value, and those of its activation."""
        size = sum(shape[1] * shape[2] * shape[3] for shape in shapes_in(outputs))
        return OpCost(0, 4 * size + (0 if isinstance(self.act, nn.Identity) else size))


class EachMap(nn.Module):
    """A module without parameters, applied to each map by itself; what drops whole images drops them on all maps."""

    def __init__(self, of: nn.Module) -> None:
        super().__init__()
        self.of = of

    def forward(self, maps: Maps) -> Maps:
        if self.training and isinstance(self.of, DropPath | StochasticDepth):
            factor = self.of(maps[0].new_ones(len(maps[0]), 1, 1, 1))
            return Maps(x * factor for x in maps)
        return Maps(self.of(x) for x in maps)


class Split(nn.Module):
    """(N, C, H, W) to maps: its last channels become coarse, by average pooling."""

    def __init__(self, channels: tuple[int, ...]) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, x: Tensor) -> Maps:
        parts = x.split(self.channels, 1)
        return Maps(smaller(part, times, "average") for times, part in enumerate(parts))


class Merge(nn.Module):
    """Maps to (N, C, H, W): the coarse ones are enlarged and put behind the fine one."""

    def __init__(self, upsampling: str) -> None:
        super().__init__()
        self.upsampling = upsampling

    def forward(self, maps: Maps) -> Tensor:
        size = (maps[0].shape[-2], maps[0].shape[-1])
        return torch.cat([larger(x, times, size, self.upsampling) for times, x in enumerate(maps)], 1)


class RegionEdge(nn.Module):
    """The first or last module of a region, ``base``, with what splits in front of it or merges behind it.

    Its attributes are those of ``base`` besides its own, and it also takes the state dict of ``base`` alone, under the
    names that this had before.
    """

    def __init__(self, base: nn.Module, split: nn.Module | None = None, merge: nn.Module | None = None) -> None:
        super().__init__()
        self.split, self.base, self.merge = split, base, merge

    def forward(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        y = self.base(x if self.split is None else self.split(x), *args, **kwargs)
        return y if self.merge is None else self.merge(y)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base":
                raise
            return getattr(self.base, name)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        own = self.base.state_dict().keys()
        present = {key.removeprefix(prefix) for key in state_dict if key.startswith(prefix)}
        if own <= present and not {f"base.{key}" for key in own} <= present:
            for key in own:
                state_dict[f"{prefix}base.{key}"] = state_dict.pop(f"{prefix}{key}")
        super()._load_from_state_dict(state_dict, prefix, *arguments)
