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
from surgery.methods.pix.ops.gradients import ForwardPass
from surgery.methods.pix.ops.reference import SiteSpec
from surgery.methods.pix.ops.triton_kernels import fusing, pooling, spreading
from surgery.methods.pix.ops.triton_kernels.site import decision as decision_of
from surgery.methods.pix.ops.triton_kernels.site import site_sizes


def pix(
    x: Tensor, weight: Tensor, bias: Tensor | None, spec: SiteSpec, with_index: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """y, p, the descriptor (N, C) and the index of each extreme (empty unless asked for); see ops.pix."""
    form = reference.layout(x)
    x, weight = x.contiguous(memory_format=form), weight.flatten(1).contiguous()
    bias = None if bias is None else bias.to(weight.dtype).contiguous()
    sizes = site_sizes(x.shape, weight.shape[0], spec, form)
    y = _empty(sizes.output, x, x.dtype, form)
    index = _empty(sizes.output, x, torch.uint8, form) if with_index else _empty((0,), x, torch.uint8)
    p = _empty((sizes.images, sizes.subsets), x, weight.dtype)
    context = _empty((sizes.images, sizes.channels), x, reference.computing_dtype(x))
    outputs = fusing.Outputs(y, index if with_index else None, p, context)
    decision = decision_of(spec, x.dtype, p.dtype)
    with _on(x):
        if fusing.is_small(sizes):
            fusing.small_site(sizes, decision, x, weight, bias, outputs)
        else:
            rounded = context if context.dtype == weight.dtype else _empty(context.shape, x, weight.dtype)
            pooling.means(sizes, x, context, rounded)
            fusing.fuse(sizes, decision, x, F.linear(rounded, weight, bias), outputs)
    return y, p, context, index


def pix_fuse(x: Tensor, p: Tensor, spec: SiteSpec) -> Tensor:
    """y from x and a p of the caller's own; see ops.pix_fuse."""
    form = reference.layout(x)
    x, p = x.contiguous(memory_format=form), p.contiguous()
    sizes = site_sizes(x.shape, p.shape[1], spec, form)
    y = _empty(sizes.output, x, x.dtype, form)
    with _on(x):
        fusing.fuse(sizes, decision_of(spec, x.dtype, p.dtype), x, p, fusing.Outputs(y))
    return y


def pix_backward(grad: Tensor, grad_p: Tensor, forward: ForwardPass, spec: SiteSpec) -> tuple[Tensor, Tensor]:
    """dx and dlogits of a threshold site; see ops.gradients.site_backward."""
    y, p, weight, size = forward.y, forward.p.contiguous(), forward.weight, forward.size
    form, exact = reference.layout(y), reference.computing_dtype(y)
    grad, y, index = (t.contiguous(memory_format=form) for t in (grad.to(y.dtype), y, forward.index))
    sizes = site_sizes((p.shape[0], weight.shape[1], size[0], size[1]), p.shape[1], spec, form)
    total = _empty(tuple(p.shape), y, exact)
    with _on(y):
        pooling.products(sizes, grad, y, total)
        dlogits, base = gradients.descriptor_gradient(
            total, grad_p.to(exact), p.to(exact), weight.to(exact), size, spec.activation
        )
        dx = spreading.spread(sizes, decision_of(spec, y.dtype, p.dtype), grad, p, index, base.contiguous())
    return dx, dlogits.to(p.dtype)


def _empty(
    shape: Sequence[int], like: Tensor, dtype: torch.dtype, form: torch.memory_format = torch.contiguous_format
) -> Tensor:
    return torch.empty(tuple(shape), dtype=dtype, device=like.device, memory_format=form)


@contextlib.contextmanager
def _on(x: Tensor):  # type: ignore[no-untyped-def]
    """Launches go to x's device, and the predictor stays in its own dtype under autocast."""
    device = torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()
    with device, torch.autocast(x.device.type, enabled=False):
        yield


__all__ = ["pix", "pix_backward", "pix_fuse"]
