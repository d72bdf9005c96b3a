"""The kernels themselves. Maps are addressed by their strides, so one kernel serves both layouts."""

import os
from typing import Any

import triton
import triton.language as tl

_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
# (pixels, channels) of a tile, warps: for maps with contiguous channels, and with contiguous pixels
_TILES = [(16, 64, 4), (32, 64, 4), (64, 64, 8), (8, 128, 4)], [(256, 4, 4), (512, 2, 4), (128, 8, 4), (1024, 1, 8)]


def _tuned(key: list[str]) -> Any:
    """Autotune over the tiles that suit the layout, once per size and layout; they change no result."""
    configs = [
        triton.Config({"PIXELS": pixels, "CHANNELS": channels}, num_warps=warps)
        for pixels, channels, warps in ([_TILES[0][0]] if _INTERPRETED else [*_TILES[0], *_TILES[1]])
    ]
    return triton.autotune(configs, key=key)


@triton.jit
def sum_kernel(
    a,
    b,
    total,
    channels,
    pixels,
    a_image,
    a_channel,
    a_pixel,
    chunk: tl.constexpr,
    SUM: tl.constexpr,
    PRODUCT: tl.constexpr,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """total (N, parts, C): sums over a part's pixels of a, or of a · b; b has a's strides."""
    image, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    channel = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    place = image * a_image + channel[None, :].to(tl.int64) * a_channel
    added = tl.zeros((PIXELS, CHANNELS), SUM)
    for begin in range(0, chunk, PIXELS):
        pixel = part * chunk + begin + tl.arange(0, PIXELS)
        inside = (pixel < pixels)[:, None] & (channel < channels)[None, :]
        at = place + pixel[:, None].to(tl.int64) * a_pixel
        value = tl.load(a + at, mask=inside, other=0.0).to(SUM)
        if PRODUCT:
            value *= tl.load(b + at, mask=inside, other=0.0).to(SUM)
        added += value
    to = total + (image * tl.num_programs(1) + part) * channels + channel
    tl.store(to, tl.sum(added, 0), mask=channel < channels)


@triton.jit
def _join(extreme, added, index, value, valid, j, MIN: tl.constexpr):
    """One more channel: of equal ones the first stays, a NaN replaces all but a NaN."""
    further = value < extreme if MIN else value > extreme
    further = (further | ((value != value) & (extreme == extreme))) & valid  # noqa: PLR0124
    extreme = tl.where(further, value, extreme)
    index = tl.where(further, j, index)
    added += tl.where(valid, value, 0.0)
    return extreme, added, index


@triton.jit
def _subset(i, channels, subsets, STRIDED: tl.constexpr):
    """First channel and size of subset i."""
    if STRIDED:
        first = i
        size = (channels - i + subsets - 1) // subsets
    else:
        first = ((i.to(tl.int64) * channels) // subsets).to(tl.int32)
        size = (((i.to(tl.int64) + 1) * channels) // subsets).to(tl.int32) - first
    return first, tl.maximum(size, 1)


@_tuned(["channels", "subsets", "out_w", "x_pixel", "INDEX"])
@triton.jit
def fuse_kernel(
    x,
    p,
    y,
    index,
    channels,
    subsets,
    width,
    out_h,
    out_w,
    stride_h,
    stride_w,
    x_image,
    x_channel,
    x_pixel,
    y_image,
    y_channel,
    y_pixel,
    tau,
    LONGEST: tl.constexpr,
    NEIGHBOURS: tl.constexpr,
    STRIDED: tl.constexpr,
    SINGLE: tl.constexpr,
    WEIGHTED: tl.constexpr,
    MIN: tl.constexpr,
    INDEX: tl.constexpr,
    SUM: tl.constexpr,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """y (and index) of a tile of output pixels × subsets of one image; SINGLE as in the C++ kernels."""
    image = tl.program_id(2).to(tl.int64)
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    i = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    inside = (pixel < out_h * out_w)[:, None] & (i < subsets)[None, :]
    source = (pixel // out_w) * stride_h * width + (pixel % out_w) * stride_w
    first, size = _subset(i, channels, subsets, STRIDED)
    step = subsets if STRIDED else 1
    at = x + image * x_image + source[:, None].to(tl.int64) * x_pixel
    place = tl.zeros((PIXELS, CHANNELS), tl.int32)
    if NEIGHBOURS > 1:
        # one contiguous load of all the subsets' channels, then taken apart in registers
        channel = tl.program_id(1) * CHANNELS * NEIGHBOURS + tl.arange(0, CHANNELS * NEIGHBOURS)
        there = (pixel < out_h * out_w)[:, None] & (channel < channels)[None, :]
        values = tl.load(at + channel[None, :], mask=there, other=0.0).to(SUM)
        if NEIGHBOURS == 2:
            extreme, second = tl.split(tl.reshape(values, (PIXELS, CHANNELS, 2)))
            added = extreme
            extreme, added, place = _join(extreme, added, place, second, inside, 1, MIN)
        else:
            even, odd = tl.split(tl.reshape(values, (PIXELS, CHANNELS, 2, 2)))
            extreme, third = tl.split(even)
            second, fourth = tl.split(odd)
            added = extreme
            extreme, added, place = _join(extreme, added, place, second, inside, 1, MIN)
            extreme, added, place = _join(extreme, added, place, third, inside, 2, MIN)
            extreme, added, place = _join(extreme, added, place, fourth, inside, 3, MIN)
    else:
        extreme = tl.load(at + first[None, :].to(tl.int64) * x_channel, mask=inside, other=0.0).to(SUM)
        added = extreme
        for j in range(1, LONGEST):
            valid = inside & (j < size)[None, :]
            value = tl.load(at + (first + j * step)[None, :].to(tl.int64) * x_channel, mask=valid, other=0.0).to(SUM)
            extreme, added, place = _join(extreme, added, place, value, valid, j, MIN)
    factor = tl.load(p + image * subsets + i, mask=i < subsets, other=0.0).to(SUM)[None, :]
    mean = added / size[None, :].to(SUM)
    if WEIGHTED:
        value = factor * extreme + (1 - factor) * mean
    elif SINGLE == 1:
        value = factor * extreme
    elif SINGLE == 2:
        value = factor * mean
    else:
        value = factor * tl.where(factor <= tau, extreme, mean)
    to = image * y_image + pixel[:, None].to(tl.int64) * y_pixel + i[None, :].to(tl.int64) * y_channel
    tl.store(y + to, value.to(y.dtype.element_ty), mask=inside)
    if INDEX:
        tl.store(index + to, place.to(tl.uint8), mask=inside)


@_tuned(["channels", "subsets", "width", "x_pixel"])
@triton.jit
def spread_kernel(
    grad,
    p,
    index,
    base,
    dx,
    channels,
    subsets,
    height,
    width,
    out_w,
    stride_h,
    stride_w,
    x_image,
    x_channel,
    x_pixel,
    y_image,
    y_channel,
    y_pixel,
    tau,
    STRIDED: tl.constexpr,
    SINGLE: tl.constexpr,
    SUM: tl.constexpr,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """dx of a tile of input pixels × channels of one image: the subset's share and the descriptor's, in one pass."""
    image = tl.program_id(2).to(tl.int64)
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    inside = (pixel < height * width)[:, None] & (c < channels)[None, :]
    if STRIDED:  # noqa: SIM108
        i = c % subsets
    else:  # the last subset that begins at c or before
        i = (((c.to(tl.int64) + 1) * subsets - 1) // channels).to(tl.int32)
    first, size = _subset(i, channels, subsets, STRIDED)
    j = (c - first) // (subsets if STRIDED else 1)
    row, column = pixel // width, pixel % width
    on_grid = inside & ((row % stride_h == 0) & (column % stride_w == 0))[:, None]
    source = (row // stride_h) * out_w + column // stride_w
    at = image * y_image + source[:, None].to(tl.int64) * y_pixel + i[None, :].to(tl.int64) * y_channel
    given = tl.load(grad + at, mask=on_grid, other=0.0).to(SUM)
    place = tl.load(index + at, mask=on_grid, other=0).to(tl.int32)
    factor = tl.load(p + image * subsets + i, mask=c < channels, other=0.0).to(SUM)[None, :]
    scaled = factor * given
    picked = tl.where(place == j[None, :], scaled, 0.0)
    spread = scaled / size[None, :].to(SUM)
    if SINGLE == 1:
        value = picked
    elif SINGLE == 2:
        value = spread
    else:
        value = tl.where(factor <= tau, picked, spread)
    value = tl.where(on_grid, value, 0.0)
    value += tl.load(base + image * channels + c, mask=c < channels, other=0.0).to(SUM)[None, :]
    to = image * x_image + pixel[:, None].to(tl.int64) * x_pixel + c[None, :].to(tl.int64) * x_channel
    tl.store(dx + to, value.to(dx.dtype.element_ty), mask=inside)
