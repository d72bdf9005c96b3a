"""The PiX kernels for CUDA, in Triton (no build step), under the interface that :mod:`surgery.ops.pix` calls.

Maps are addressed by their strides, so one kernel serves both layouts; tiles run along the axis that is contiguous in
memory. The bytes that must move bound them all: x is read once to pool and once to fuse (from L2 where an image is
small), the backward pass reads neither x nor the weights' product with it, only dy, y and a uint8 index, and writes dx
once. Sums have a fixed order: no atomics, so results repeat bit for bit.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from surgery.ops import gradients, reference
from surgery.ops.triton_kernels.kernels import fuse_kernel, spread_kernel, sum_kernel

POOLED = 1024  # pixels that one program adds up
_SUMS = {torch.float32: tl.float32, torch.float64: tl.float64}


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
    x = x.contiguous(memory_format=reference.layout(x))
    context = _sum_pixels(x, None) / (x.shape[2] * x.shape[3])
    with torch.autocast(x.device.type, enabled=False):
        p = reference.predict(context, weight, bias, activation)
    y, index = _fuse(x, p, tau, fusion, operator, stride, grouping, with_index)
    return y, p, context, index


def pix_fuse(
    x: Tensor, p: Tensor, tau: float, fusion: str, operator: str, stride: Sequence[int], grouping: str
) -> Tensor:
    """y from x and a p of the caller's own; see surgery.ops.pix_fuse."""
    x = x.contiguous(memory_format=reference.layout(x))
    return _fuse(x, p.contiguous(), tau, fusion, operator, stride, grouping, False)[0]


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
    (n, subsets), channels = p.shape, weight.shape[1]
    with torch.autocast(y.device.type, enabled=False):
        total = _sum_pixels(grad, y)
        exact_p = p.to(exact).contiguous()
        dlogits, base = gradients.descriptor_gradient(
            total, grad_p.to(exact), exact_p, weight.to(exact), list(size), activation
        )
    dx = torch.empty((n, channels, *size), dtype=y.dtype, device=y.device, memory_format=form)
    spread_kernel[_grid(size[0] * size[1], channels, n)](
        grad,
        exact_p,
        index,
        base.contiguous(),
        dx,
        channels,
        subsets,
        *size,
        y.shape[3],
        *stride,
        *_strides(dx, form),
        *_strides(y, form),
        _rounded(tau, p),
        STRIDED=grouping == "strided",
        SINGLE=_single(operator),
        SUM=_SUMS[exact],
    )
    return dx, dlogits.to(p.dtype)


def _fuse(
    x: Tensor,
    p: Tensor,
    tau: float,
    fusion: str,
    operator: str,
    stride: Sequence[int],
    grouping: str,
    with_index: bool,
) -> tuple[Tensor, Tensor]:
    form = reference.layout(x)
    n, channels, h, w = x.shape
    subsets, out_h, out_w = p.shape[1], -(-h // stride[0]), -(-w // stride[1])
    y = torch.empty((n, subsets, out_h, out_w), dtype=x.dtype, device=x.device, memory_format=form)
    longest = -(-channels // subsets)
    neighbours = form == torch.channels_last and grouping == "contiguous" and channels == longest * subsets
    neighbours = neighbours and longest in (2, 4)
    shape = y.shape if with_index else (0, 0, 0, 0)
    index = torch.empty(shape, dtype=torch.uint8, device=x.device, memory_format=form)
    fuse_kernel[_grid(out_h * out_w, subsets, n)](
        x,
        p,
        y,
        index,
        channels,
        subsets,
        w,
        out_h,
        out_w,
        *stride,
        *_strides(x, form),
        *_strides(y, form),
        _rounded(tau, p),
        LONGEST=longest,
        NEIGHBOURS=longest if neighbours else 0,
        STRIDED=grouping == "strided",
        SINGLE=_single(operator),
        WEIGHTED=fusion == "weighted",
        MIN=operator == "min",
        INDEX=with_index,
        SUM=_SUMS[reference.computing_dtype(x)],
    )
    return y, index


def _sum_pixels(a: Tensor, b: Tensor | None) -> Tensor:
    """(N, C): sums over the pixels of a, or of a · b, which has a's layout."""
    form, exact = reference.layout(a), reference.computing_dtype(a)
    n, channels, h, w = a.shape
    parts = -(-h * w // POOLED)
    total = torch.empty((n, parts, channels), dtype=exact, device=a.device)
    tile = (16, 64) if form == torch.channels_last else (512, 2)
    sum_kernel[(n, parts, triton.cdiv(channels, tile[1]))](
        a,
        a if b is None else b,
        total,
        channels,
        h * w,
        *_strides(a, form),
        chunk=POOLED,
        SUM=_SUMS[exact],
        PRODUCT=b is not None,
        PIXELS=tile[0],
        CHANNELS=tile[1],
    )
    return total.sum(1) if parts > 1 else total[:, 0]


def _grid(pixels: int, channels: int, images: int) -> Any:
    return lambda tile: (triton.cdiv(pixels, tile["PIXELS"]), triton.cdiv(channels, tile["CHANNELS"]), images)


def _strides(t: Tensor, form: torch.memory_format) -> tuple[int, int, int]:
    """Of image, channel and pixel, as the layout has them: torch's own mean nothing where a size is 1."""
    channels, pixels = t.shape[1], t.shape[2] * t.shape[3]
    last = form == torch.channels_last
    return channels * pixels, 1 if last else pixels, channels if last else 1


def _rounded(tau: float, p: Tensor) -> float:
    """tau as p's dtype has it, which is what a comparison with p means in PyTorch."""
    return torch.tensor(tau, dtype=p.dtype, device="cpu").item()


def _single(operator: str) -> int:
    return 0 if operator == "max+avg" else 2 if operator == "avg" else 1
