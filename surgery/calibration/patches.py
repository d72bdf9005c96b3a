"""What a convolution or linear layer reads to give one output vector, as rows of a matrix."""

import math
from typing import cast

import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d, Conv2dSame
from timm.layers.padding import get_same_padding
from torch import Tensor, nn

from surgery.transforms.squeezed_conv import SqueezedConv2d

FITTED = (nn.Conv2d, Conv2dSame, SqueezedConv2d, nn.Linear, nn.BatchNorm2d, BatchNormAct2d)


def groups_of(layer: nn.Module) -> int:
    """How many independent regressions a layer is: groups of a convolution, channels of a norm, 1 for a linear."""
    return int(getattr(layer, "num_features", getattr(layer, "groups", 1)))


def outputs_of(layer: nn.Module) -> int:
    """Width of what a layer gives."""
    return int(next(getattr(layer, n) for n in ("out_channels", "out_features", "num_features") if hasattr(layer, n)))


def matrices(layer: nn.Module) -> Tensor:
    """The weight as (groups, outputs per group, features): ``row @ matrix.mT`` is the layer without its constant."""
    weight = cast(Tensor, layer.weight).detach().double()
    if isinstance(layer, nn.modules.batchnorm._BatchNorm):
        weight = weight / (cast(Tensor, layer.running_var) + layer.eps).sqrt()
    return weight.reshape(groups_of(layer), -1, math.prod(weight.shape[1:]))


def sampled(maps: Tensor, count: int, generator: torch.Generator, last: bool = False) -> tuple[Tensor, ...]:
    """Indices of ``count`` different positions of each map, or of all where there are fewer.

    Args:
        maps: (N, C), (N, C, H, W), or with ``last`` (N, …, C).

    Returns:
        (n,), (n, i, j), or with ``last`` (n, position), where the positions between the first and the last dimension
        are counted through.
    """
    if maps.ndim == 2:
        return (torch.arange(len(maps), device=maps.device),)
    height, width = (1, math.prod(maps.shape[1:-1])) if last else maps.shape[2:]
    keys = torch.rand(len(maps), height * width, generator=generator)
    chosen = keys.topk(min(count, height * width), dim=1).indices.flatten().to(maps.device)
    image = torch.arange(len(maps), device=maps.device).repeat_interleave(len(chosen) // len(maps))
    return (image, chosen) if last else (image, chosen // width, chosen % width)


def at(maps: Tensor, places: tuple[Tensor, ...]) -> Tensor:
    """Rows (R, C) of maps at the indices that :func:`sampled` gives."""
    if len(places) == 1:
        return maps[places[0]]
    if len(places) == 2:
        return maps.flatten(1, -2)[places]
    return maps[places[0], :, places[1], places[2]]


def patches(layer: nn.Module, x: Tensor, places: tuple[Tensor, ...]) -> Tensor:
    """What ``layer`` reads of ``x`` for its outputs at ``places``: (R, groups, features)."""
    if isinstance(layer, nn.Linear):
        return at(x, places)[:, None]
    if isinstance(layer, nn.modules.batchnorm._BatchNorm):
        return at(x, places)[:, :, None]
    conv = cast(nn.Conv2d, layer)
    (kh, kw), (sh, sw), (dh, dw) = conv.kernel_size, conv.stride, conv.dilation
    padded = padded_as(conv, x)
    image, i, j = places
    taps = [padded[image, :, i * sh + a * dh, j * sw + b * dw] for a in range(kh) for b in range(kw)]
    return torch.stack(taps, dim=2).reshape(len(image), conv.groups, -1)


def padded_as(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """Maps (N, C, H, W) with the padding that a convolution adds."""
    (kh, kw), (sh, sw), (dh, dw) = conv.kernel_size, conv.stride, conv.dilation
    if isinstance(conv, Conv2dSame):
        tall, wide = get_same_padding(x.shape[2], kh, sh, dh), get_same_padding(x.shape[3], kw, sw, dw)
        return F.pad(x, (wide // 2, wide - wide // 2, tall // 2, tall - tall // 2))
    sides = conv._reversed_padding_repeated_twice
    return F.pad(x, sides, mode="constant" if conv.padding_mode == "zeros" else conv.padding_mode) if any(sides) else x
