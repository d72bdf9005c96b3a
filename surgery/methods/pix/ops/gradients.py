"""Gradients of a PiX site as differentiable PyTorch operators: second derivatives, and every kernel's test oracle.

The threshold itself has no gradient (PiX Eq. 2); of equal channels the first takes what reaches the extreme.
"""

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from surgery.methods.pix.ops import reference
from surgery.methods.pix.ops.reference import SiteSpec


@dataclasses.dataclass(frozen=True, eq=False)
class ForwardPass:
    """What the backward pass of a threshold site reads of its forward pass: all but x.

    Args:
        y: (N, C_out, H', W').
        p: (N, C_out).
        index: as y, uint8: the position of the extreme in its subset.
        weight: (C_out, C, 1, 1) or (C_out, C).
        size: (H, W) of x.
    """

    y: Tensor
    p: Tensor
    index: Tensor
    weight: Tensor
    size: Sequence[int]


def fuse_backward(grad: Tensor, x: Tensor, p: Tensor, spec: SiteSpec) -> tuple[Tensor, Tensor]:
    """Gradients of :func:`reference.fuse` with respect to x and p."""
    groups, mask = reference.split_subsets(reference.strided(x, spec.stride), p.shape[1], spec.grouping)
    extreme, index = reference.subset_extreme(groups, spec.operator)
    mean = reference.subset_mean(groups, mask)
    if spec.fusion == "weighted":
        q = p[:, :, None, None].to(x.dtype)
        to_extreme, to_mean, dp = grad * q, grad * (1 - q), grad * (extreme - mean)
    else:
        take = _takes_extreme(p, spec)
        to_extreme, to_mean = _parts(grad, p, take)
        dp = grad * torch.where(take, extreme, mean)
    dx = _scatter(to_extreme, to_mean, index, x.shape, spec)
    return dx, dp.sum((2, 3), dtype=reference.computing_dtype(x)).to(p.dtype)


def site_backward(grad: Tensor, grad_p: Tensor, forward: ForwardPass, spec: SiteSpec) -> tuple[Tensor, Tensor]:
    """Gradients of a threshold site with respect to x and the logits, without x.

    As y = p · r, the gradient of p is Σ grad · y / p, and p's own slope p (1 - p) cancels the division.

    Args:
        grad: (N, C_out, H', W'), as y.
        grad_p: (N, C_out), as p.

    Returns:
        dx (N, C, H, W) in grad's dtype, and dlogits (N, C_out) in p's.
    """
    y, p, weight = forward.y, forward.p, forward.weight
    total = (grad * y).sum((2, 3), dtype=reference.computing_dtype(y)).to(p.dtype)
    dlogits, base = descriptor_gradient(total, grad_p, p, weight, forward.size, spec.activation)
    shape = torch.Size((grad.shape[0], weight.shape[1], *forward.size))
    to_extreme, to_mean = _parts(grad, p, _takes_extreme(p, spec))
    dx = _scatter(to_extreme, to_mean, forward.index, shape, spec)
    return dx + base[:, :, None, None].to(grad.dtype), dlogits


def descriptor_gradient(
    total: Tensor, grad_p: Tensor, p: Tensor, weight: Tensor, size: Sequence[int], activation: str
) -> tuple[Tensor, Tensor]:
    """dlogits (N, C_out) from Σ grad · y, and what it gives every pixel of x: (N, C)."""
    factor = 1 if activation == "sigmoid" else 2
    dlogits = factor * (1 - p) * (total + grad_p * p)
    return dlogits, (dlogits @ weight.flatten(1)) / (size[0] * size[1])


def _takes_extreme(p: Tensor, spec: SiteSpec) -> Tensor:
    if spec.operator == "max+avg":
        return p[:, :, None, None] <= spec.tau
    return torch.full_like(p[:, :, None, None], spec.operator != "avg", dtype=torch.bool)


def _parts(grad: Tensor, p: Tensor, take: Tensor) -> tuple[Tensor, Tensor]:
    scaled = grad * p[:, :, None, None].to(grad.dtype)
    zero = torch.zeros_like(scaled)
    return torch.where(take, scaled, zero), torch.where(take, zero, scaled)


def _scatter(to_extreme: Tensor, to_mean: Tensor, index: Tensor, shape: torch.Size, spec: SiteSpec) -> Tensor:
    """What reaches each channel of x, from what reaches extreme and mean of its subset."""
    channels, subsets = shape[1], index.shape[1]
    members = reference.subset_members(channels, subsets, spec.grouping)
    longest = max(len(row) for row in members)
    sizes = torch.tensor([len(row) for row in members], device=index.device, dtype=to_mean.dtype)
    picked = torch.arange(longest, device=index.device)[:, None, None] == index.unsqueeze(2)
    spread = (to_mean / sizes[:, None, None]).unsqueeze(2)
    flat = (to_extreme.unsqueeze(2) * picked + spread).flatten(1, 2)
    positions = {channel: i * longest + j for i, row in enumerate(members) for j, channel in enumerate(row)}
    order = [positions[channel] for channel in range(channels)]
    if order != list(range(len(order))) or len(order) != subsets * longest:
        flat = flat[:, torch.tensor(order, device=flat.device)]
    if spec.stride == (1, 1):
        return flat
    full = flat.new_zeros(shape)
    full[:, :, :: spec.stride[0], :: spec.stride[1]] = flat
    return full
