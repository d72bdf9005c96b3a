"""The kernels for CUDA devices (Triton), under the interface that :mod:`surgery.methods.pix.ops.pix` calls.

A site is three launches: the descriptor (``pooling``), its product with the weight (cuBLAS) and the fusion with the
activation inside (``fusing``); small maps are one launch. The backward pass reads no x: Σ grad · y (``pooling``), the
predictor's gradient in PyTorch, and one launch that writes dx (``spreading``). Nothing waits for the device and no
size depends on data, so that all of it can be captured in a CUDA graph; sums have a fixed order and use no atomics.
"""

import contextlib
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from surgery.methods.pix.ops import gradients, reference
from surgery.methods.pix.ops.triton_kernels import fusing, pooling, spreading
from surgery.methods.pix.ops.triton_kernels.site import decision as decision_of
from surgery.methods.pix.ops.triton_kernels.site import site as site_of


def pix(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    tau: float,
    fusion: str,
    operator: str,
    activation: str,
    stride: Sequence[int],
    grouping: str,
    with_index: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """y, p, the descriptor (N, C) and the index of each extreme (empty unless asked for); see surgery.ops.pix."""
    form = reference.layout(x)
    x, weight = x.contiguous(memory_format=form), weight.flatten(1).contiguous()
    bias = None if bias is None else bias.to(weight.dtype).contiguous()
    site = site_of(x.shape, weight.shape[0], tuple(stride), grouping, form)
    y = _empty(site.output, x, x.dtype, form)
    index = _empty(site.output, x, torch.uint8, form) if with_index else _empty((0,), x, torch.uint8)
    p = _empty((site.images, site.subsets), x, weight.dtype)
    context = _empty((site.images, site.channels), x, reference.computing_dtype(x))
    place = index if with_index else None
    decision = decision_of(tau, fusion, operator, x.dtype, p.dtype)
    with _on(x):
        if fusing.is_small(site):
            fusing.small_site(site, decision, activation, x, weight, bias, y, p, context, place)
        else:
            rounded = context if context.dtype == weight.dtype else _empty(context.shape, x, weight.dtype)
            pooling.means(site, x, context, rounded)
            logits = F.linear(rounded, weight, bias)
            fusing.fuse(site, decision, x, logits, y, place, p, activation)
    return y, p, context, index


def pix_fuse(
    x: Tensor, p: Tensor, tau: float, fusion: str, operator: str, stride: Sequence[int], grouping: str
) -> Tensor:
    """y from x and a p of the caller's own; see surgery.ops.pix_fuse."""
    form = reference.layout(x)
    x, p = x.contiguous(memory_format=form), p.contiguous()
    site = site_of(x.shape, p.shape[1], tuple(stride), grouping, form)
    y = _empty(site.output, x, x.dtype, form)
    with _on(x):
        fusing.fuse(site, decision_of(tau, fusion, operator, x.dtype, p.dtype), x, p, y)
    return y


def pix_backward(
    grad: Tensor,
    grad_p: Tensor,
    y: Tensor,
    p: Tensor,
    index: Tensor,
    weight: Tensor,
    size: Sequence[int],
    tau: float,
    operator: str,
    activation: str,
    stride: Sequence[int],
    grouping: str,
) -> tuple[Tensor, Tensor]:
    """dx and dlogits of a threshold site; see surgery.ops.gradients.site_backward."""
    form, exact = reference.layout(y), reference.computing_dtype(y)
    grad, y, index = (t.contiguous(memory_format=form) for t in (grad.to(y.dtype), y, index))
    shape = (p.shape[0], weight.shape[1], size[0], size[1])
    site = site_of(shape, p.shape[1], tuple(stride), grouping, form)
    decision = decision_of(tau, "threshold", operator, y.dtype, p.dtype)
    p = p.contiguous()
    total = _empty(tuple(p.shape), y, exact)
    dx = _empty(shape, y, y.dtype, form)
    with _on(y):
        pooling.products(site, grad, y, total)
        dlogits, base = gradients.descriptor_gradient(
            total, grad_p.to(exact), p.to(exact), weight.to(exact), list(size), activation
        )
        spreading.spread(site, decision, grad, p, index, base.contiguous(), dx)
    return dx, dlogits.to(p.dtype)


def _empty(
    shape: Sequence[int], like: Tensor, dtype: torch.dtype, form: torch.memory_format = torch.contiguous_format
) -> Tensor:
    return torch.empty(tuple(shape), dtype=dtype, device=like.device, memory_format=form)


@contextlib.contextmanager
def _on(x: Tensor):  # type: ignore[no-untyped-def]
    """Launches go to x's device, and the predictor stays in the dtype it was given under autocast."""
    device = torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()
    with device, torch.autocast(x.device.type, enabled=False):
        yield


__all__ = ["pix", "pix_backward", "pix_fuse"]
