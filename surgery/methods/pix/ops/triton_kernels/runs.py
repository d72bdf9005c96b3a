"""Kernels for subsets that are runs of neighbours in memory: contiguous subsets of channels_last.

A tile is loaded along the runs of all its subsets at once, and reduced (or spread) along its last dimension.
"""

# mypy: allow-untyped-defs, allow-untyped-calls
import triton
import triton.language as tl

from surgery.methods.pix.ops.triton_kernels.subsets import (
    aligned,
    extreme_of,
    fused,
    larger,
    largest,
    members,
    probabilities,
    smallest,
    source,
    takes_extreme,
    target,
    tile,
)


@triton.jit(do_not_specialize=["pixel_bucket", "subset_bucket"])
def fuse_runs(
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
    KB: tl.constexpr,
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
    LANES: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """y of contiguous subsets in channels_last: tiles (BLOCK_P, BLOCK_O, KB), along the channels of each subset."""
    BLOCK_O: tl.constexpr = LANES // KB
    image, first_o, first_q = tile(subsets, pixels, BLOCK_O, BLOCK_P, True, REVERSED)
    o, q = first_o + tl.arange(0, BLOCK_O), first_q + tl.arange(0, BLOCK_P)
    prob = probabilities(predicted, p, image * subsets + o, o < subsets, first_q == 0, ACTIVATION, ACC)[None, :]
    pixel = source(q, width, out_width, stride_h, stride_w, UNIT_STRIDE)
    if WIDE:
        pixel, q = pixel.to(tl.int64), q.to(tl.int64)
    channels, subsets = aligned(channels, ALIGN), aligned(subsets, ALIGN)
    rows = x + image * channels * plane + pixel * channels
    in_map, in_site = q < pixels, o < subsets
    first, size = members(o, channels, subsets, K, EVEN, False)
    if EVEN and K == KB:
        lane = first_o * K + tl.arange(0, LANES)
        value = tl.load(rows[:, None] + lane[None, :], mask=in_map[:, None] & (lane < channels)[None, :], other=0)
        value = tl.reshape(value.to(ACC), (BLOCK_P, BLOCK_O, K))
        everywhere = tl.full((BLOCK_P, BLOCK_O, K), 1, tl.int1)
        best, position, total = _along_runs(value, everywhere, MODE, MINIMUM, index is not None)
    else:
        best = tl.full((BLOCK_P, BLOCK_O), float("inf") if MINIMUM else float("-inf"), ACC)
        position, total = tl.zeros((BLOCK_P, BLOCK_O), tl.int32), tl.zeros((BLOCK_P, BLOCK_O), ACC)
        for start in range(0, K, KB):
            k = start + tl.arange(0, KB)
            mine = in_site[:, None] & (k[None, :] < size[:, None])
            mask = in_map[:, None, None] & mine[None, :, :]
            offset = first[:, None] + k[None, :]
            value = tl.load(rows[:, None, None] + offset[None, :, :], mask=mask, other=0).to(ACC)
            run_best, run_position, run_total = _along_runs(value, mask, MODE, MINIMUM, index is not None)
            total += run_total
            if index is not None:
                position = tl.where(larger(run_best, best, MINIMUM), start + run_position, position)
            best = extreme_of(run_best, best, MINIMUM)
    result = fused(best, total, size[None, :].to(ACC), prob, tau, MODE)
    out = image * subsets * pixels + (q * subsets)[:, None] + o[None, :]
    mask = in_map[:, None] & in_site[None, :]
    tl.store(y + out, result.to(y.dtype.element_ty), mask=mask)
    if index is not None:
        tl.store(index + out, position.to(tl.uint8), mask=mask)


@triton.jit
def _along_runs(value, mask, MODE: tl.constexpr, MINIMUM: tl.constexpr, INDEXED: tl.constexpr):
    """Extreme, its first position and sum of value (P, O, K), 0 outside the mask, along K."""
    total = tl.sum(value, axis=2)
    best, position = total, tl.zeros(total.shape, tl.int32)
    if INDEXED or MODE != "mean":
        if MINIMUM:
            best = tl.reduce(tl.where(mask, value, float("inf")), 2, smallest)
        else:
            best = tl.reduce(tl.where(mask, value, float("-inf")), 2, largest)
    if INDEXED:
        k = tl.arange(0, value.shape[2])[None, None, :]
        # there is a NaN only where the extreme is one
        is_best = ((value == best[:, :, None]) | (value != value)) & mask  # noqa: PLR0124
        position = tl.min(tl.where(is_best, k, value.shape[2]), axis=2)
    return best, position, total


@triton.jit(do_not_specialize=["pixel_bucket", "subset_bucket"])
def spread_runs(
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
    KB: tl.constexpr,
    EVEN: tl.constexpr,
    STRIDED: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    UNIT_STRIDE: tl.constexpr,
    ALIGN: tl.constexpr,
    WIDE: tl.constexpr,
    MODE: tl.constexpr,
    ACC: tl.constexpr,
    LANES: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """dx of contiguous subsets in channels_last: tiles (BLOCK_P, BLOCK_O, KB), along the channels of each subset."""
    BLOCK_O: tl.constexpr = LANES // KB
    image, first_o, first_q = tile(subsets, plane, BLOCK_O, BLOCK_P, True, False)
    o, q = first_o + tl.arange(0, BLOCK_O), first_q + tl.arange(0, BLOCK_P)
    in_map, in_site = q < plane, o < subsets
    prob = tl.load(p + image * subsets + o, mask=in_site, other=0).to(ACC)
    takes = takes_extreme(prob, tau, MODE)[None, :]
    pixel, read = target(q, width, out_width, stride_h, stride_w, UNIT_STRIDE)
    if WIDE:
        pixel, q = pixel.to(tl.int64), q.to(tl.int64)
    channels, subsets = aligned(channels, ALIGN), aligned(subsets, ALIGN)
    first, size = members(o, channels, subsets, K, EVEN, False)
    factor = tl.where(takes, prob[None, :], (prob / size.to(ACC))[None, :])
    has_grad = (in_map & read)[:, None] & in_site[None, :]
    of_grad = image * subsets * pixels + (pixel * subsets)[:, None] + o[None, :]
    scaled = tl.where(has_grad, tl.load(grad + of_grad, mask=has_grad, other=0).to(ACC) * factor, 0)
    share, position = scaled, tl.full(scaled.shape, -1, tl.int32)
    if MODE != "mean":
        position = tl.where(takes, tl.load(index + of_grad, mask=has_grad, other=0).to(tl.int32), position)
        share = tl.where(takes, 0, scaled)
    base += image * channels
    rows = dx + image * channels * plane + q * channels
    for start in range(0, K, KB):
        k = start + tl.arange(0, KB)
        value = tl.where(position[:, :, None] == k[None, None, :], scaled[:, :, None], share[:, :, None])
        if EVEN and K == KB:
            lane = first_o * K + tl.arange(0, LANES)
            mine = lane < channels
            value = tl.reshape(value, (BLOCK_P, LANES)) + tl.load(base + lane, mask=mine, other=0)[None, :]
            tl.store(rows[:, None] + lane[None, :], value.to(dx.dtype.element_ty), mask=in_map[:, None] & mine[None, :])
        else:
            offset = first[:, None] + k[None, :]
            mine = in_site[:, None] & (k[None, :] < size[:, None])
            value += tl.load(base + offset, mask=mine, other=0)[None, :, :]
            mask = in_map[:, None, None] & mine[None, :, :]
            tl.store(rows[:, None, None] + offset[None, :, :], value.to(dx.dtype.element_ty), mask=mask)
