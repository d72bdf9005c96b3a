"""Kernels for subsets whose channels lie apart in memory: NCHW, and strided subsets of channels_last.

Neighbours in memory are then pixels, or channels of different subsets, so that a tile takes one channel of each subset
after the other, each a coalesced load, and its threads share nothing.
"""

# mypy: allow-untyped-defs, allow-untyped-calls
import triton
import triton.language as tl

from surgery.methods.pix.ops.triton_kernels.subsets import (
    activated,
    aligned,
    fused,
    members,
    probabilities,
    reduced,
    source,
    takes_extreme,
    target,
    tile,
)


@triton.jit(do_not_specialize=["pixel_bucket", "subset_bucket"])
def fuse_planes(
    x,
    predicted,
    y,
    index,
    p,
    channels,
    subsets,
    plane,
    pixels,
    width,
    out_width,
    stride_h,
    stride_w,
    tau: tl.float64,
    pixel_bucket,
    subset_bucket,
    K: tl.constexpr,
    EVEN: tl.constexpr,
    STRIDED: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    UNIT_STRIDE: tl.constexpr,
    ALIGN: tl.constexpr,
    WIDE: tl.constexpr,
    MODE: tl.constexpr,
    MINIMUM: tl.constexpr,
    ACTIVATION: tl.constexpr,
    REVERSED: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """y of BLOCK_O subsets at BLOCK_P pixels of an image, one channel of each subset at a time."""
    image, first_o, first_q = tile(subsets, pixels, BLOCK_O, BLOCK_P, CHANNELS_LAST, REVERSED)
    o, q = first_o + tl.arange(0, BLOCK_O), first_q + tl.arange(0, BLOCK_P)
    value = probabilities(predicted, p, image * subsets + o, o < subsets, first_q == 0, ACTIVATION, ACC)
    _fuse_tile(
        x,
        y,
        index,
        value,
        image,
        o,
        q,
        channels,
        subsets,
        plane,
        pixels,
        width,
        out_width,
        stride_h,
        stride_w,
        tau,
        K,
        EVEN,
        STRIDED,
        CHANNELS_LAST,
        UNIT_STRIDE,
        ALIGN,
        WIDE,
        MODE,
        MINIMUM,
        ACC,
    )


@triton.jit
def _fuse_tile(
    x,
    y,
    index,
    p,
    image,
    o,
    q,
    channels,
    subsets,
    plane,
    pixels,
    width,
    out_width,
    stride_h,
    stride_w,
    tau,
    K: tl.constexpr,
    EVEN: tl.constexpr,
    STRIDED: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    UNIT_STRIDE: tl.constexpr,
    ALIGN: tl.constexpr,
    WIDE: tl.constexpr,
    MODE: tl.constexpr,
    MINIMUM: tl.constexpr,
    ACC: tl.constexpr,
):
    """y of subsets o of an image at pixels q, and the positions of the extremes, from p of subsets o."""
    inside = (o < subsets)[:, None] & (q < pixels)[None, :]
    first, size = members(o, channels, subsets, K, EVEN, STRIDED)
    pixel = source(q, width, out_width, stride_h, stride_w, UNIT_STRIDE)
    if WIDE:
        first, pixel, o, q = first.to(tl.int64), pixel.to(tl.int64), o.to(tl.int64), q.to(tl.int64)
    if CHANNELS_LAST:
        channels, subsets = aligned(channels, ALIGN), aligned(subsets, ALIGN)
        of_channel, offset, out = 1, first[:, None] + (pixel * channels)[None, :], o[:, None] + (q * subsets)[None, :]
    else:
        plane, pixels = aligned(plane, ALIGN), aligned(pixels, ALIGN)
        of_channel, offset, out = plane, (first * plane)[:, None] + pixel[None, :], (o * pixels)[:, None] + q[None, :]
    step = of_channel * subsets if STRIDED else of_channel
    if WIDE:
        step = tl.cast(step, tl.int64)
    size = size[:, None]
    start = x + image * channels * plane
    best, position, total = reduced(start, offset, size, step, inside, K, EVEN, MODE, MINIMUM, index is not None, ACC)
    out += image * subsets * pixels
    result = fused(best, total, size.to(ACC), p[:, None], tau, MODE)
    tl.store(y + out, result.to(y.dtype.element_ty), mask=inside)
    if index is not None:
        tl.store(index + out, position.to(tl.uint8), mask=inside)


@triton.jit
def fuse_small(
    x,
    weight,
    bias,
    y,
    p,
    context,
    index,
    channels,
    subsets,
    plane,
    pixels,
    width,
    out_width,
    stride_h,
    stride_w,
    tau: tl.float64,
    K: tl.constexpr,
    EVEN: tl.constexpr,
    STRIDED: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    UNIT_STRIDE: tl.constexpr,
    ALIGN: tl.constexpr,
    WIDE: tl.constexpr,
    MODE: tl.constexpr,
    MINIMUM: tl.constexpr,
    ACTIVATION: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """One image: descriptor, logits, p, y. x is read again for y, from the L1 cache."""
    image = tl.program_id(0).to(tl.int64)
    c, o, q = tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_O), tl.arange(0, BLOCK_Q)
    if CHANNELS_LAST:
        offset = c[:, None] + (q * aligned(channels, ALIGN))[None, :]
    else:
        offset = (c * aligned(plane, ALIGN))[:, None] + q[None, :]
    start = x + image * channels * plane
    value = tl.load(start + offset, mask=(c < channels)[:, None] & (q < plane)[None, :], other=0).to(ACC)
    z = tl.sum(value, axis=1) / plane
    tl.store(context + image * channels + c, z, mask=c < channels)
    z = z.to(weight.dtype.element_ty).to(ACC)
    here = (o < subsets)[:, None] & (c < channels)[None, :]
    row = tl.load(weight + (o * channels)[:, None] + c[None, :], mask=here, other=0).to(ACC)
    logits = tl.sum(row * z[None, :], axis=1)
    if bias is not None:
        logits += tl.load(bias + o, mask=o < subsets, other=0).to(ACC)
    logits = logits.to(p.dtype.element_ty).to(ACC)
    rounded = activated(logits, ACTIVATION).to(p.dtype.element_ty)
    tl.store(p + image * subsets + o, rounded, mask=o < subsets)
    _fuse_tile(
        x,
        y,
        index,
        rounded.to(ACC),
        image,
        o,
        tl.arange(0, BLOCK_P),
        channels,
        subsets,
        plane,
        pixels,
        width,
        out_width,
        stride_h,
        stride_w,
        tau,
        K,
        EVEN,
        STRIDED,
        CHANNELS_LAST,
        UNIT_STRIDE,
        ALIGN,
        WIDE,
        MODE,
        MINIMUM,
        ACC,
    )


@triton.jit(do_not_specialize=["pixel_bucket", "subset_bucket"])
def spread_planes(
    grad,
    p,
    index,
    base,
    dx,
    channels,
    subsets,
    plane,
    pixels,
    width,
    out_width,
    stride_h,
    stride_w,
    tau: tl.float64,
    pixel_bucket,
    subset_bucket,
    K: tl.constexpr,
    EVEN: tl.constexpr,
    STRIDED: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    UNIT_STRIDE: tl.constexpr,
    ALIGN: tl.constexpr,
    WIDE: tl.constexpr,
    MODE: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """dx of the channels of BLOCK_O subsets at BLOCK_P pixels of x, one channel of each subset at a time."""
    image, first_o, first_q = tile(subsets, plane, BLOCK_O, BLOCK_P, CHANNELS_LAST, False)
    o, q = first_o + tl.arange(0, BLOCK_O), first_q + tl.arange(0, BLOCK_P)
    mine = o < subsets
    inside = mine[:, None] & (q < plane)[None, :]
    prob = tl.load(p + image * subsets + o, mask=mine, other=0).to(ACC)
    takes = takes_extreme(prob, tau, MODE)[:, None]
    first, size = members(o, channels, subsets, K, EVEN, STRIDED)
    factor = tl.where(takes, prob[:, None], (prob / size.to(ACC))[:, None])
    pixel, read = target(q, width, out_width, stride_h, stride_w, UNIT_STRIDE)
    of_base = base + image * channels + first
    next_base = subsets if STRIDED else 1
    wide_first = first
    if WIDE:
        wide_first, pixel, o, q = first.to(tl.int64), pixel.to(tl.int64), o.to(tl.int64), q.to(tl.int64)
    if CHANNELS_LAST:
        channels, subsets = aligned(channels, ALIGN), aligned(subsets, ALIGN)
        of_channel, offset = 1, wide_first[:, None] + (q * channels)[None, :]
        of_grad = o[:, None] + (pixel * subsets)[None, :]
    else:
        plane, pixels = aligned(plane, ALIGN), aligned(pixels, ALIGN)
        of_channel, offset = plane, (wide_first * plane)[:, None] + q[None, :]
        of_grad = (o * pixels)[:, None] + pixel[None, :]
    step = of_channel * subsets if STRIDED else of_channel
    if WIDE:
        step = tl.cast(step, tl.int64)
    of_grad += image * subsets * pixels
    has_grad = inside & read[None, :]
    scaled = tl.where(has_grad, tl.load(grad + of_grad, mask=has_grad, other=0).to(ACC) * factor, 0)
    share, position = scaled, tl.full(scaled.shape, -1, tl.int32)
    if MODE != "mean":
        position = tl.where(takes, tl.load(index + of_grad, mask=has_grad, other=0).to(tl.int32), position)
        share = tl.where(takes, 0, scaled)
    out = dx + image * channels * plane
    for k in range(0, K):
        has = mine if EVEN else mine & (k < size)
        value = tl.where(position == k, scaled, share) + tl.load(of_base + next_base * k, mask=has, other=0)[:, None]
        tl.store(out + offset + step * k, value.to(dx.dtype.element_ty), mask=inside & has[:, None])
