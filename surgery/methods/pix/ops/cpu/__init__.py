"""The compiled CPU kernels (C++), under the interface that :mod:`surgery.methods.pix.ops.pix` calls."""

import torch
from torch import Tensor

from surgery.methods.pix.ops import gradients, reference
from surgery.methods.pix.ops.cpu import library
from surgery.methods.pix.ops.gradients import ForwardPass
from surgery.methods.pix.ops.reference import SiteSpec


def pix(
    x: Tensor, weight: Tensor, bias: Tensor | None, spec: SiteSpec, with_index: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """y, p, the descriptor (N, C) and the index of each extreme (empty unless asked for); see ops.pix."""
    form = reference.layout(x)
    x, weight = x.contiguous(memory_format=form), weight.contiguous()
    bias = None if bias is None else bias.to(weight.dtype).contiguous()
    n, channels, h, w = x.shape
    subsets = weight.shape[0]
    site = library.describe((n, channels, subsets, h, w), spec, form, x.dtype, weight.dtype)
    y = torch.empty((n, subsets, site.out_h, site.out_w), dtype=x.dtype, memory_format=form)
    index = torch.empty_like(y, dtype=torch.uint8) if with_index else torch.empty(0, dtype=torch.uint8)
    p = torch.empty((n, subsets), dtype=weight.dtype)
    context = torch.empty((n, channels), dtype=reference.computing_dtype(x))
    library.call("pix_forward", site, x, weight, bias, y, p, context, index if with_index else None)
    return y, p, context, index


def pix_fuse(x: Tensor, p: Tensor, spec: SiteSpec) -> Tensor:
    """y from x and a p of the caller's own; see ops.pix_fuse."""
    form = reference.layout(x)
    x, exact = x.contiguous(memory_format=form), p.to(reference.computing_dtype(x)).contiguous()
    n, channels, h, w = x.shape
    site = library.describe((n, channels, p.shape[1], h, w), spec, form, x.dtype, p.dtype)
    y = torch.empty((n, p.shape[1], site.out_h, site.out_w), dtype=x.dtype, memory_format=form)
    library.call("pix_fuse", site, x, exact, y)
    return y


def pix_backward(grad: Tensor, grad_p: Tensor, forward: ForwardPass, spec: SiteSpec) -> tuple[Tensor, Tensor]:
    """dx and dlogits of a threshold site; see ops.gradients.site_backward."""
    y, p, weight, size = forward.y, forward.p, forward.weight, forward.size
    form, exact = reference.layout(y), reference.computing_dtype(y)
    grad, y, index = (t.contiguous(memory_format=form) for t in (grad.to(y.dtype), y, forward.index))
    (n, subsets), channels = p.shape, weight.shape[1]
    site = library.describe((n, channels, subsets, *size), spec, form, y.dtype, weight.dtype)
    total = torch.empty((n, subsets), dtype=exact)
    library.call("pix_products", site, grad, y, total)
    exact_p = p.to(exact).contiguous()
    dlogits, base = gradients.descriptor_gradient(
        total, grad_p.to(exact), exact_p, weight.to(exact), size, spec.activation
    )
    dx = torch.empty((n, channels, *size), dtype=y.dtype, memory_format=form)
    library.call("pix_spread", site, grad, exact_p, index, base.contiguous(), dx)
    return dx, dlogits.to(p.dtype)


__all__ = ["library", "pix", "pix_backward", "pix_fuse"]
