"""PiX as a plain composition of PyTorch operators: the definition, and every fused kernel's test oracle.

Source: Pick-or-Mix (PiX), Eq. 1-3, where ``zeta`` (C / C_out) input channels form a subset and
output channel ``i`` is ``p_i`` times one reduction of its subset.
"""

import math
from typing import Literal

import torch
from torch import Tensor

from surgery.transforms.subsets import subset_members

Fusion = Literal["threshold", "weighted"]
Operator = Literal["max+avg", "max", "avg", "min"]
Activation = Literal["sigmoid", "tanh"]
Grouping = Literal["contiguous", "strided"]

FUSIONS = ("threshold", "weighted")
OPERATORS = ("max+avg", "max", "avg", "min")
ACTIVATIONS = ("sigmoid", "tanh")
GROUPINGS = ("contiguous", "strided")


def split_subsets(x: Tensor, subsets: int, grouping: str = "contiguous") -> tuple[Tensor, Tensor | None]:
    """View or gather ``x`` (N, C, H, W) as (N, subsets, k, H, W).

    Returns the grouped tensor and, where the subsets differ in size, a mask of shape (subsets, k, 1, 1) that is 1
    where a position is a channel of its own and 0 where it repeats one.
    """
    channels = x.shape[1]
    if channels % subsets == 0:
        if grouping == "strided":
            return x.unflatten(1, (channels // subsets, subsets)).transpose(1, 2), None
        return x.unflatten(1, (subsets, channels // subsets)), None
    members = subset_members(channels, subsets, grouping)
    longest = math.ceil(channels / subsets)
    # the short ones are padded by their own first channel: it changes no extreme, and the mask keeps it from the mean
    index = torch.tensor([row + row[:1] * (longest - len(row)) for row in members], device=x.device)
    sizes = torch.tensor([len(row) for row in members], device=x.device)
    mask = (torch.arange(longest, device=x.device) < sizes[:, None]).to(x.dtype)
    return x[:, index.flatten()].unflatten(1, (subsets, -1)), mask[:, :, None, None]


def subset_mean(groups: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over the channels of each subset, of those that are there."""
    if mask is None:
        return groups.mean(2)
    # where, not a product: a repeated channel may hold NaN or inf, and 0 · inf is NaN where the true mean is inf
    return groups.where(mask.bool(), 0).sum(2) / mask.sum(1)


def subset_extreme(groups: Tensor, operator: str) -> tuple[Tensor, Tensor]:
    """Max (min for ``operator="min"``) of each subset and its index; of equal ones the first (CUDA listing)."""
    values, index = groups.min(2) if operator == "min" else groups.max(2)
    return values, index


def strided(x: Tensor, stride: list[int]) -> Tensor:
    """The positions of ``x`` that a 1×1 convolution of this stride reads."""
    return x if stride == [1, 1] else x[:, :, :: stride[0], :: stride[1]]


def activate(logits: Tensor, activation: str) -> Tensor:
    """Map logits to p in [0, 1]: the sigmoid, or 0.5 · (1 + tanh) (PiX supplement, ablation E0)."""
    return torch.sigmoid(logits) if activation == "sigmoid" else 0.5 * (1 + torch.tanh(logits))


def fuse(
    x: Tensor, p: Tensor, tau: float, fusion: str, operator: str, stride: list[int], grouping: str = "contiguous"
) -> Tensor:
    """PiX Eq. 2 (``threshold``) or Eq. 3 (``weighted``).

    Args:
        x: (N, C, H, W), floating.
        p: (N, C_out), in [0, 1].

    Returns:
        (N, C_out, ⌈H / stride⌉, ⌈W / stride⌉) of x's dtype.
    """
    groups, mask = split_subsets(strided(x, stride), p.shape[1], grouping)
    if operator == "avg":
        return p[:, :, None, None].to(x.dtype) * subset_mean(groups, mask)
    extreme = subset_extreme(groups, operator)[0]
    weight = p[:, :, None, None]
    if operator != "max+avg":
        return weight.to(x.dtype) * extreme
    mean = subset_mean(groups, mask)
    if fusion == "weighted":
        return weight.to(x.dtype) * extreme + (1 - weight).to(x.dtype) * mean
    return weight.to(x.dtype) * torch.where(weight <= tau, extreme, mean)


def describe(x: Tensor) -> Tensor:
    """The descriptor z: means over the pixels, (N, C), in float32 or better (PiX Eq. 1)."""
    return x.mean((2, 3), dtype=computing_dtype(x))


def computing_dtype(x: Tensor) -> torch.dtype:
    """The dtype that sums are kept in: float64 for float64, else float32."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def predict(context: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    """p = σ(W · z + b), in the weight's dtype: (N, C_out) (PiX Eq. 1)."""
    logits = context.to(weight.dtype) @ weight.flatten(1).t()
    return activate(logits if bias is None else logits + bias, activation)


def layout(x: Tensor) -> torch.memory_format:
    """The memory format of a site's output: channels last where x is, else contiguous."""
    channels_last = x.stride(1) == 1 and x.shape[1] > 1 and not x.is_contiguous()
    return torch.channels_last if channels_last else torch.contiguous_format
