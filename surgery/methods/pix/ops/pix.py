"""The operators of a PiX site, through torch.library.

``surgery::pix`` is a whole site without gradient, ``surgery::pix_with_index`` the same in training (it keeps the
position of each extreme, one byte per output value, so that the backward pass reads no x), ``surgery::pix_backward``
its gradient and ``surgery::pix_fuse`` the last step alone. Their schemas take plain arguments, of which each operator
makes one :class:`reference.SiteSpec`; nothing below passes them piecemeal. Each runs on the kernels that `backend` has
for the tensors at hand, else as the composition in `reference`; callers see only :func:`pix` and :func:`pix_fuse`.
"""

import contextlib
import warnings
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from surgery.methods.pix.ops import gradients, reference
from surgery.methods.pix.ops.backend import has_kernels, kernels_for, register_kernels
from surgery.methods.pix.ops.gradients import ForwardPass
from surgery.methods.pix.ops.reference import SiteSpec, site_spec
from surgery.methods.pix.ops.shapes import check_fusion, check_gradient, check_site

INDEX_LIMIT = 256  # positions in a subset that one byte can tell apart


torch.library.define(
    "surgery::pix",
    "(Tensor x, Tensor weight, Tensor? bias, float tau, str fusion, str operator, str activation, SymInt[] stride, "
    "str grouping='contiguous') -> (Tensor, Tensor)",
    tags=(torch.Tag.pt2_compliant_tag,),
)


# not a custom_op: that puts Python between the dispatcher and a compiled kernel
@torch.library.impl("surgery::pix", "CompositeExplicitAutograd")
def _pix(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    tau: float,
    fusion: str,
    operator: str,
    activation: str,
    stride: list[int],
    grouping: str = "contiguous",
) -> tuple[Tensor, Tensor]:
    check_site(x, weight, bias, stride)
    spec = site_spec(tau, fusion, operator, activation, stride, grouping)
    kernels = kernels_for(x, weight)
    if kernels is None:
        return _compose(x, weight, bias, spec)
    y, p, _, _ = kernels.pix(x, weight, bias, spec, with_index=False)
    return y, p


def _compose(x: Tensor, weight: Tensor, bias: Tensor | None, spec: SiteSpec) -> tuple[Tensor, Tensor]:
    """The site as plain PyTorch operators, differentiable any number of times."""
    with torch.autocast(x.device.type, enabled=False):
        p = reference.predict(reference.describe(x), weight, bias, spec.activation)
        return _compose_fusion(x, p, spec), p


def _compose_fusion(x: Tensor, p: Tensor, spec: SiteSpec) -> Tensor:
    with torch.autocast(x.device.type, enabled=False):
        if torch.jit.is_tracing():
            with _constant_channels():
                return reference.fuse(x, p, spec)
        y = reference.fuse(x, p, spec)
        return y if _plain() else y.contiguous(memory_format=reference.layout(x))


@contextlib.contextmanager
def _constant_channels() -> Iterator[None]:
    """In a TorchScript trace, sizes are tensors; that numbers of channels become constants needs no warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        yield


def _plain() -> bool:
    """Whether a site must be operators that torch's own tools know: TorchScript (and ONNX through it), torch.func."""
    return torch.jit.is_tracing() or torch._C._are_functorch_transforms_active()


@torch.library.custom_op("surgery::pix_with_index", mutates_args=())
def _pix_with_index(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    tau: float,
    operator: str,
    activation: str,
    stride: list[int],
    grouping: str = "contiguous",
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    check_site(x, weight, bias, stride)
    spec = site_spec(tau, "threshold", operator, activation, stride, grouping)
    kernels = kernels_for(x, weight)
    if kernels is not None:
        return kernels.pix(x, weight, bias, spec, with_index=True)
    return _compose_with_index(x, weight, bias, spec)


def _compose_with_index(
    x: Tensor, weight: Tensor, bias: Tensor | None, spec: SiteSpec
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """y, p, the descriptor and the position of each extreme, as plain PyTorch operators."""
    with torch.autocast(x.device.type, enabled=False):
        context = reference.describe(x)
        p = reference.predict(context, weight, bias, spec.activation)
        y = reference.fuse(x, p, spec)
        groups, _ = reference.split_subsets(reference.strided(x, spec.stride), p.shape[1], spec.grouping)
        index = reference.subset_extreme(groups, spec.operator)[1].to(torch.uint8)
        form = reference.layout(x)
        return y.contiguous(memory_format=form), p, context, index.contiguous(memory_format=form)


@torch.library.custom_op("surgery::pix_backward", mutates_args=())
def _pix_backward(
    grad: Tensor,
    grad_p: Tensor,
    y: Tensor,
    p: Tensor,
    index: Tensor,
    weight: Tensor,
    size: list[int],
    tau: float,
    operator: str,
    activation: str,
    stride: list[int],
    grouping: str,
) -> tuple[Tensor, Tensor]:
    check_gradient(grad, y, p, index, weight, size)
    forward = ForwardPass(y, p, index, weight, size)
    spec = site_spec(tau, "threshold", operator, activation, stride, grouping)
    kernels = kernels_for(y, weight)
    if kernels is not None:
        return kernels.pix_backward(grad, grad_p, forward, spec)
    with torch.autocast(y.device.type, enabled=False):
        dx, dlogits = gradients.site_backward(grad, grad_p, forward, spec)
        return dx.contiguous(memory_format=reference.layout(y)), dlogits


@torch.library.custom_op("surgery::pix_fuse", mutates_args=())
def _pix_fuse(
    x: Tensor, p: Tensor, tau: float, fusion: str, operator: str, stride: list[int], grouping: str = "contiguous"
) -> Tensor:
    check_fusion(x, p, stride)
    spec = _fusion_spec(tau, fusion, operator, stride, grouping)
    kernels = kernels_for(x, p)
    if kernels is not None:
        return kernels.pix_fuse(x, p, spec)
    with torch.autocast(x.device.type, enabled=False):
        y = reference.fuse(x, p, spec)
        return y.contiguous(memory_format=reference.layout(x))


def _fusion_spec(tau: float, fusion: str, operator: str, stride: Sequence[int], grouping: str) -> SiteSpec:
    """The spec of a fusion alone, for which the activation has no say."""
    return site_spec(tau, fusion, operator, "sigmoid", stride, grouping)


def _empty_output(x: Tensor, subsets: int, stride: Sequence[int], dtype: torch.dtype) -> Tensor:
    shape = (x.shape[0], subsets, -(-x.shape[2] // stride[0]), -(-x.shape[3] // stride[1]))
    return torch.empty(shape, dtype=dtype, device=x.device, memory_format=reference.layout(x))


@torch.library.register_fake("surgery::pix")
def _(x, weight, bias, tau, fusion, operator, activation, stride, grouping="contiguous"):  # type: ignore[no-untyped-def]
    p = weight.new_empty((x.shape[0], weight.shape[0]))
    return _empty_output(x, weight.shape[0], stride, x.dtype), p


@_pix_with_index.register_fake
def _(x, weight, bias, tau, operator, activation, stride, grouping="contiguous"):  # type: ignore[no-untyped-def]
    y, index = (_empty_output(x, weight.shape[0], stride, dtype) for dtype in (x.dtype, torch.uint8))
    context = x.new_empty((x.shape[0], x.shape[1]), dtype=reference.computing_dtype(x))
    return y, weight.new_empty((x.shape[0], weight.shape[0])), context, index


@_pix_backward.register_fake
def _(grad, grad_p, y, p, index, weight, size, tau, operator, activation, stride, grouping):  # type: ignore[no-untyped-def]
    shape = (y.shape[0], weight.shape[1], *size)
    dx = torch.empty(shape, dtype=y.dtype, device=y.device, memory_format=reference.layout(y))
    return dx, torch.empty_like(p)


@_pix_fuse.register_fake
def _(x, p, tau, fusion, operator, stride, grouping="contiguous"):  # type: ignore[no-untyped-def]
    return _empty_output(x, p.shape[1], stride, x.dtype)


def _with_index_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    x, weight, bias, *ctx.arguments = inputs
    y, p, context, index = output
    ctx.mark_non_differentiable(index)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, weight, bias, p, context, index)
    # not saved the usual way, which forbids a ReLU in place behind the site: a convolution permits it. The alias shares
    # y's version, by which the backward pass knows whether it still is what it was
    ctx.y, ctx.version = y.detach(), y._version


def _with_index_autograd(ctx, grad, grad_p, grad_context, _):  # type: ignore[no-untyped-def]
    x, weight, bias, p, context, index = ctx.saved_tensors
    tau, operator, activation, stride, grouping = ctx.arguments
    grad_p = torch.zeros_like(p) if grad_p is None else grad_p
    size = [x.shape[2], x.shape[3]]
    with torch.autocast(x.device.type, enabled=False):
        if torch.is_grad_enabled():
            # a second derivative is wanted: all must carry its own dependence on x and the weights
            context = reference.describe(x)
            p = reference.predict(context, weight, bias, activation)
            spec = site_spec(tau, "threshold", operator, activation, stride, grouping)
            y = reference.fuse(x, p, spec)
            grad = torch.zeros_like(y) if grad is None else grad
            dx, dlogits = gradients.site_backward(grad, grad_p, ForwardPass(y, p, index, weight, size), spec)
        else:
            y, ctx.y = ctx.y, None  # lest it outlives this pass
            if y is None or y._version != ctx.version:
                y = _pix_fuse(x, p, tau, "threshold", operator, stride, grouping)
            grad = torch.zeros_like(y) if grad is None else grad
            dx, dlogits = _pix_backward(grad, grad_p, y, p, index, weight, size, *ctx.arguments)
        dweight = (dlogits.t() @ context.to(dlogits.dtype)).reshape(weight.shape)
        if grad_context is not None:
            dx = dx + (grad_context / (size[0] * size[1]))[:, :, None, None].to(dx.dtype)
    return dx, dweight, None if bias is None else dlogits.sum(0), None, None, None, None, None


def _fuse_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    x, p, *ctx.arguments = inputs
    ctx.save_for_backward(x, p)


def _fuse_autograd(ctx, grad):  # type: ignore[no-untyped-def]
    x, p = ctx.saved_tensors
    with torch.autocast(x.device.type, enabled=False):
        dx, dp = gradients.fuse_backward(grad, x, p, _fusion_spec(*ctx.arguments))
    return dx, dp, None, None, None, None, None


_pix_with_index.register_autograd(_with_index_autograd, setup_context=_with_index_context)
_pix_fuse.register_autograd(_fuse_autograd, setup_context=_fuse_context)


@register_flop_formula([torch.ops.surgery.pix, torch.ops.surgery.pix_with_index])
def _pix_flop(x_shape, weight_shape, *args, out_shape=None, **kwargs) -> int:  # type: ignore[no-untyped-def]
    """Twice the multiply-accumulates of the predictor, the only convolution of a site (torch counts 2 per MAC)."""
    return 2 * x_shape[0] * weight_shape[0] * weight_shape[1]


register_kernels()
_PIX = torch.ops.surgery.pix.default  # looking an overload up costs as much as calling it


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
    grouping: reference.Grouping = "contiguous",
) -> tuple[Tensor, Tensor]:
    """A whole PiX site: pool, predict p, fuse (PiX Eq. 1-3).

    Args:
        x: (N, C, H, W), floating. Pooled over all of H, W; fused on the strided grid.
        weight: (C_out, C, 1, 1) or (C_out, C), the replaced convolution's own.
        bias: (C_out,) or None.
        tau: with ``p <= tau`` an output channel takes the max of its subset, else the mean.
        grouping: subset i is a run of neighbours (``contiguous``, the paper's), or i, i + C_out, … (``strided``).

    Returns:
        y (N, C_out, ⌈H / stride⌉, ⌈W / stride⌉) in x's dtype (autocast's, where enabled), channels last where x is,
        and p (N, C_out) in the weight's dtype.

    Raises:
        ValueError: shapes that do not fit each other.
    """
    check_site(x, weight, bias, stride)
    x, stride = _to_autocast(x), list(stride)
    trains = torch.is_grad_enabled() and (
        x.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad)
    )
    composed = _plain() or not has_kernels(x.dtype, weight.dtype)
    if composed or (trains and (fusion != "threshold" or x.shape[1] > INDEX_LIMIT * weight.shape[0])):
        # not from site_spec's cache, through which torch.compile does not see
        return _compose(x, weight, bias, SiteSpec(tau, fusion, operator, activation, (stride[0], stride[1]), grouping))
    if trains:
        return _pix_with_index(x, weight, bias, tau, operator, activation, stride, grouping)[:2]
    # the dispatcher's kernel takes no views with gaps
    weight, bias = weight.contiguous(), None if bias is None else bias.contiguous()
    return _PIX(x, weight, bias, tau, fusion, operator, activation, stride, grouping)


def pix_fuse(
    x: Tensor,
    p: Tensor,
    *,
    tau: float = 0.5,
    fusion: reference.Fusion = "threshold",
    operator: reference.Operator = "max+avg",
    stride: Sequence[int] = (1, 1),
    grouping: reference.Grouping = "contiguous",
) -> Tensor:
    """The fusion alone, for a p of the caller's own: x (N, C, H, W), p (N, C_out) in [0, 1]; see :func:`pix`."""
    check_fusion(x, p, stride)
    x, stride = _to_autocast(x), list(stride)
    if _plain():
        spec = SiteSpec(tau, fusion, operator, stride=(stride[0], stride[1]), grouping=grouping)
        return _compose_fusion(x, p, spec)
    return _pix_fuse(x, p, tau, fusion, operator, stride, grouping)
