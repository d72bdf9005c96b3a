"""The operators ``surgery::pix`` (a whole site) and ``surgery::pix_fuse`` (its last step), through torch.library.

Backends take their place by ``torch.ops.surgery.pix`` kernel registration; callers see only :func:`pix` and
:func:`pix_fuse`. Both carry a fake kernel, an autograd formula made of differentiable operators, and the
multiply-accumulate count that ``torch.utils.flop_counter`` reads.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from surgery.ops import reference


@torch.library.custom_op("surgery::pix_fuse", mutates_args=())
def _pix_fuse(x: Tensor, p: Tensor, tau: float, fusion: str, operator: str, stride: list[int]) -> Tensor:
    with torch.autocast(x.device.type, enabled=False):
        return reference.fuse(x, p, tau, fusion, operator, stride)


@torch.library.custom_op("surgery::pix", mutates_args=())
def _pix(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    tau: float,
    fusion: str,
    operator: str,
    activation: str,
    stride: list[int],
) -> tuple[Tensor, Tensor]:
    with torch.autocast(x.device.type, enabled=False):
        p = reference.predict(x, weight, bias, activation)
        return reference.fuse(x, p, tau, fusion, operator, stride), p


@_pix_fuse.register_fake
def _(x: Tensor, p: Tensor, tau: float, fusion: str, operator: str, stride: list[int]) -> Tensor:
    return reference.fuse(x, p, tau, fusion, operator, stride)


@_pix.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    tau: float,
    fusion: str,
    operator: str,
    activation: str,
    stride: list[int],
) -> tuple[Tensor, Tensor]:
    p = reference.predict(x, weight, bias, activation)
    return reference.fuse(x, p, tau, fusion, operator, stride), p


def _fuse_backward(
    grad: Tensor, x: Tensor, p: Tensor, tau: float, fusion: str, operator: str, stride: list[int]
) -> tuple[Tensor, Tensor]:
    """Gradients of :func:`reference.fuse` with respect to x and p; the threshold itself has none (PiX Eq. 2)."""
    subsets = p.shape[1]
    groups, mask = reference.split_subsets(reference.strided(x, stride), subsets)
    q = p[:, :, None, None].to(x.dtype)
    extreme, index = reference.subset_extreme(groups, operator)
    mean = reference.subset_mean(groups, mask)
    if operator == "max+avg" and fusion == "weighted":
        to_extreme, to_mean, dp = grad * q, grad * (1 - q), grad * (extreme - mean)
    else:
        if operator == "max+avg":
            take = p[:, :, None, None] <= tau
        else:
            take = torch.full_like(q, operator != "avg", dtype=torch.bool)
        scaled = grad * q
        zero = torch.zeros_like(scaled)
        to_extreme, to_mean = torch.where(take, scaled, zero), torch.where(take, zero, scaled)
        dp = grad * torch.where(take, extreme, mean)
    position = torch.arange(groups.shape[2], device=x.device)[:, None, None]
    picked = (position == index.unsqueeze(2)).to(grad.dtype)
    if mask is None:
        spread = to_mean.unsqueeze(2) / groups.shape[2]
    else:
        spread = to_mean.unsqueeze(2) * (mask / mask.sum(1, keepdim=True))
    dgroups = to_extreme.unsqueeze(2) * picked + spread
    return _ungroup(dgroups, x, stride), dp.sum((2, 3)).to(p.dtype)


def _ungroup(dgroups: Tensor, x: Tensor, stride: list[int]) -> Tensor:
    """Undo ``strided`` and ``split_subsets`` for a gradient."""
    subsets, channels = dgroups.shape[1], x.shape[1]
    flat = dgroups.flatten(1, 2)
    if channels % subsets:
        rows, sizes = reference._gather_index(channels, subsets)
        own = [i * len(row) + j for i, (row, size) in enumerate(zip(rows, sizes, strict=True)) for j in range(size)]
        flat = flat[:, torch.tensor(own, device=flat.device)]
    if stride == [1, 1]:
        return flat
    full = flat.new_zeros((x.shape[0], channels, x.shape[2], x.shape[3]))
    full[:, :, :: stride[0], :: stride[1]] = flat
    return full


def _fuse_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    x, p, *ctx.arguments = inputs
    ctx.save_for_backward(x, p)


def _fuse_autograd(ctx, grad):  # type: ignore[no-untyped-def]
    x, p = ctx.saved_tensors
    with torch.autocast(x.device.type, enabled=False):
        dx, dp = _fuse_backward(grad, x, p, *ctx.arguments)
    return dx, dp, None, None, None, None


def _pix_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    x, weight, bias, tau, fusion, operator, ctx.activation, stride = inputs
    ctx.arguments = (tau, fusion, operator, stride)
    ctx.has_bias = bias is not None
    ctx.save_for_backward(x, weight, bias, output[1])


def _pix_autograd(ctx, grad, grad_p):  # type: ignore[no-untyped-def]
    x, weight, bias, p = ctx.saved_tensors
    with torch.autocast(x.device.type, enabled=False):
        if torch.is_grad_enabled():
            # a second derivative is wanted: p must carry its own dependence on x and the weights
            p = reference.predict(x, weight, bias, ctx.activation)
        dx, dp = _fuse_backward(grad, x, p, *ctx.arguments)
        dp = dp + grad_p
        slope = p * (1 - p)
        dlogits = dp * (slope if ctx.activation == "sigmoid" else 2 * slope)
        context = x.mean((2, 3)).to(weight.dtype)
        dweight = (dlogits.t() @ context).reshape(weight.shape)
        dcontext = (dlogits @ weight.flatten(1)).to(x.dtype) / (x.shape[2] * x.shape[3])
        dx = dx + dcontext[:, :, None, None]
    return dx, dweight, dlogits.sum(0) if ctx.has_bias else None, None, None, None, None, None


_pix_fuse.register_autograd(_fuse_autograd, setup_context=_fuse_context)
_pix.register_autograd(_pix_autograd, setup_context=_pix_context)


@register_flop_formula(torch.ops.surgery.pix)
def _pix_flop(x_shape, weight_shape, *args, out_shape=None, **kwargs) -> int:  # type: ignore[no-untyped-def]
    """Twice the multiply-accumulates of the predictor, the only convolution of a site (torch counts 2 per MAC)."""
    return 2 * x_shape[0] * weight_shape[0] * weight_shape[1]


def _to_autocast(x: Tensor) -> Tensor:
    """Under autocast, take x in the dtype that the replaced convolution would have produced."""
    kind = x.device.type
    return x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x


def pix(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    tau: float = 0.5,
    fusion: reference.Fusion = "threshold",
    operator: reference.Operator = "max+avg",
    activation: reference.Activation = "sigmoid",
    stride: Sequence[int] = (1, 1),
) -> tuple[Tensor, Tensor]:
    """A whole PiX site: pool, predict p, fuse (PiX Eq. 1-3).

    Args:
        x: (N, C, H, W), floating. Pooled over all of H, W; fused on the strided grid.
        weight: (C_out, C, 1, 1) or (C_out, C), the replaced convolution's own.
        bias: (C_out,) or None.
        tau: with ``p <= tau`` an output channel takes the max of its subset, else the mean.

    Returns:
        y (N, C_out, ⌈H / stride⌉, ⌈W / stride⌉) in x's dtype (autocast's, where enabled) and p (N, C_out) in the
        weight's.
    """
    return _pix(_to_autocast(x), weight, bias, tau, fusion, operator, activation, list(stride))


def pix_fuse(
    x: Tensor,
    p: Tensor,
    *,
    tau: float = 0.5,
    fusion: reference.Fusion = "threshold",
    operator: reference.Operator = "max+avg",
    stride: Sequence[int] = (1, 1),
) -> Tensor:
    """The fusion alone, for a p of the caller's own: x (N, C, H, W), p (N, C_out) in [0, 1]; see :func:`pix`."""
    return _pix_fuse(_to_autocast(x), p, tau, fusion, operator, list(stride))
