"""Write a fitted linear map into a layer and the BatchNorm that reads it."""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from surgery.calibration.normal_equations import NormalEquations
from surgery.calibration.patches import matrices


def affine_of(norm: _BatchNorm | None, like: Tensor, channels: Tensor | slice = slice(None)) -> tuple[Tensor, Tensor]:
    """(scale, shift) by which a norm in eval mode maps each of ``channels``; float64, of the shape of ``like``."""
    if norm is None:
        return torch.ones_like(like), torch.zeros_like(like)
    mean, variance = cast(Tensor, norm.running_mean).double(), cast(Tensor, norm.running_var).double()
    scale = 1 / (variance + norm.eps).sqrt()
    if norm.affine:
        scale = scale * norm.weight.detach().double()
    shift = (norm.bias.detach().double() if norm.affine else 0) - scale * mean
    return scale[channels].reshape(like.shape), shift[channels].reshape(like.shape)


def inverse_of(scale: Tensor) -> Tensor:
    """1 / scale, and 0 for the channels that a norm has switched off."""
    return torch.where(scale.abs() <= 1e-6 * scale.abs().max(), 0.0, 1 / scale)


def takes_constant(layer: nn.Module, norm: _BatchNorm | None) -> bool:
    """Whether a constant per output has a place in the layer or behind it."""
    return norm is not None or getattr(layer, "bias", None) is not None


@torch.no_grad()
def absorb(
    layer: nn.Module,
    norm: _BatchNorm | None,
    weight: Tensor,
    intercept: Tensor,
    after: tuple[Tensor, Tensor],
    sums: NormalEquations,
) -> None:
    """Make layer and norm compute ``scale · (weight · x + intercept) + shift``, in eval and in training mode.

    The norm's running statistics become those of what it now reads, and its own scale and shift make up for that; so
    a training that goes on from here starts at the same function.

    Args:
        weight: (groups, outputs per group, features); intercept: (groups, outputs per group).
        after: (scale, shift), of the shape of ``intercept``.
        sums: of the rows that the layer reads.
    """
    scale, shift = after
    if norm is layer:
        weight, mean, variance = scale[..., None] * weight, *sums.mean_and_variance(torch.ones_like(weight))
        _set_norm(norm, mean, variance, weight[..., 0], scale * intercept + shift)
        return
    target = cast(nn.Parameter, layer.weight)
    target.copy_(weight.reshape(target.shape))
    bias = cast("Tensor | None", getattr(layer, "bias", None))
    if norm is None:
        if bias is not None:
            bias.copy_(intercept.flatten())
        return
    own = 0.0 if bias is None else bias.detach().double().reshape(intercept.shape)
    mean, variance = sums.mean_and_variance(weight)
    _set_norm(norm, mean + own, variance, scale, shift + scale * (intercept - own))


@torch.no_grad()
def measure_norm(layer: nn.Module, norm: _BatchNorm, sums: NormalEquations) -> None:
    """Set a norm's running statistics to those of what it reads; its parameters stay."""
    weight = torch.ones_like(matrices(layer)) if norm is layer else matrices(layer)
    mean, variance = sums.mean_and_variance(weight)
    bias = None if norm is layer else cast("Tensor | None", getattr(layer, "bias", None))
    cast(Tensor, norm.running_mean).copy_(mean.flatten() + (0 if bias is None else bias))
    cast(Tensor, norm.running_var).copy_(variance.flatten())


def _set_norm(norm: _BatchNorm, mean: Tensor, variance: Tensor, scale: Tensor, shift: Tensor) -> None:
    """Statistics, and the parameters with which the norm maps v to ``scale · v + shift``."""
    mean, variance, scale, shift = (t.flatten() for t in (mean, variance, scale, shift))
    if norm.affine:
        deviation = (variance + norm.eps).sqrt()
        cast(Tensor, norm.running_mean).copy_(mean)
        cast(Tensor, norm.running_var).copy_(variance)
        norm.weight.copy_(scale * deviation)
        norm.bias.copy_(shift + scale * mean)
    else:  # v / s - m / s with s as it is
        cast(Tensor, norm.running_mean).copy_(-shift / scale)
