"""Sums over the pixels of maps: the descriptor of x, and Σ grad · y.

Each map is cut into parts where there are too few maps to fill a device; their sums are added in order by a second
launch. Where the cuts are depends on sizes alone, not on the device, so that results repeat anywhere.
"""

# mypy: allow-untyped-defs, allow-untyped-calls
import dataclasses

import torch
import triton
import triton.language as tl
from torch import Tensor

from surgery.methods.pix.ops.triton_kernels.site import ACCUMULATORS, SiteSizes, alignment, is_wide
from surgery.methods.pix.ops.triton_kernels.subsets import aligned, tile

TILE = 4096  # elements that a program holds
LANES = 1024, 128  # of them along the contiguous dimension at most: pixels, or channels in channels_last
PROGRAMS = 1024  # so many fill any device
PART_BLOCK = 128  # rows whose parts a program adds


@dataclasses.dataclass(frozen=True)
class Maps:
    """Sizes and layout of the maps that are summed."""

    images: int
    channels: int
    pixels: int
    channels_last: bool


def means(sizes: SiteSizes, x: Tensor, context: Tensor, rounded: Tensor) -> None:
    """The descriptor (N, C) of x, and the same rounded to another dtype (may be the same tensor)."""
    maps = Maps(sizes.images, sizes.channels, sizes.plane, sizes.channels_last)
    _sums(x, None, context, None if rounded is context else rounded, maps, sizes.plane)


def products(sizes: SiteSizes, grad: Tensor, y: Tensor, total: Tensor) -> None:
    """Σ grad · y over pixels: (N, C_out)."""
    _sums(grad, y, total, None, Maps(sizes.images, sizes.subsets, sizes.pixels, sizes.channels_last), 1)


def cuts(maps: Maps) -> tuple[int, int, int, int]:
    """Channels and pixels of a tile, tiles that a program adds up, and parts that a map is cut into."""
    if maps.channels_last:
        across = min(triton.next_power_of_2(maps.channels), LANES[1])
        along = min(triton.next_power_of_2(maps.pixels), TILE // across)
    else:
        along = min(triton.next_power_of_2(maps.pixels), LANES[0])
        across = min(triton.next_power_of_2(maps.channels), TILE // along)
    tiles = triton.cdiv(maps.pixels, along)
    wanted = triton.cdiv(PROGRAMS, maps.images * triton.cdiv(maps.channels, across))
    steps = triton.cdiv(tiles, min(tiles, wanted))
    return across, along, steps, triton.cdiv(tiles, steps)


def _sums(x: Tensor, other: Tensor | None, out: Tensor, rounded: Tensor | None, maps: Maps, count: int) -> None:
    """Σ over pixels of x (times other), divided by count: out (images, channels), and the same rounded."""
    rows = maps.images * maps.channels
    across, along, steps, parts = cuts(maps)
    sums = out if parts == 1 else torch.empty((parts, *out.shape), dtype=out.dtype, device=out.device)
    accumulator = ACCUMULATORS[out.dtype]
    _sum_tiles[(maps.images * triton.cdiv(maps.channels, across) * parts,)](
        x,
        other,
        sums,
        rounded if parts == 1 else None,
        maps.images,
        maps.channels,
        maps.pixels,
        steps,
        count if parts == 1 else 1,
        CHANNELS_LAST=maps.channels_last,
        ALIGN=alignment(maps.channels if maps.channels_last else maps.pixels),
        WIDE=is_wide(maps.channels, maps.pixels),
        BLOCK_C=across,
        BLOCK_P=along,
        ACC=accumulator,
        num_warps=4,
    )
    if parts > 1:
        grid, block = (triton.cdiv(rows, PART_BLOCK),), {"BLOCK": PART_BLOCK, "ACC": accumulator, "num_warps": 4}
        _sum_parts[grid](sums, out, rounded, rows, parts, count, **block)


@triton.jit
def _sum_tiles(
    x,
    other,
    out,
    rounded,
    images,
    channels,
    pixels,
    steps,
    count,
    CHANNELS_LAST: tl.constexpr,
    ALIGN: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
    ACC: tl.constexpr,
):
    """One part of the maps of BLOCK_C channels: `steps` tiles of pixels, added lane by lane, then the lanes."""
    if CHANNELS_LAST:
        channels = aligned(channels, ALIGN)
        of_channel, of_pixel = 1, channels
    else:
        pixels = aligned(pixels, ALIGN)
        of_channel, of_pixel = pixels, 1
    image, first_c, first_q = tile(channels, pixels, BLOCK_C, BLOCK_P * steps, CHANNELS_LAST, False)
    c, q = first_c + tl.arange(0, BLOCK_C), first_q + tl.arange(0, BLOCK_P)
    if WIDE:
        c, q = c.to(tl.int64), q.to(tl.int64)
    start = image * channels * pixels
    total = tl.zeros((BLOCK_C, BLOCK_P), ACC)
    for _ in range(steps):
        inside = (c < channels)[:, None] & (q < pixels)[None, :]
        offset = (c * of_channel)[:, None] + (q * of_pixel)[None, :]
        value = tl.load(x + start + offset, mask=inside, other=0).to(ACC)
        if other is not None:
            value *= tl.load(other + start + offset, mask=inside, other=0).to(ACC)
        total += value
        q += BLOCK_P
    result = tl.sum(total, axis=1) / count
    part = first_q // (BLOCK_P * steps)
    row = (part * images + image) * channels + c
    tl.store(out + row, result, mask=c < channels)
    if rounded is not None:
        tl.store(rounded + row, result.to(rounded.dtype.element_ty), mask=c < channels)


@triton.jit
def _sum_parts(sums, out, rounded, rows, parts, count, BLOCK: tl.constexpr, ACC: tl.constexpr):
    """The parts' sums (parts, rows), added in order and divided by count."""
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), ACC)
    at = row
    for _ in range(parts):
        total += tl.load(sums + at, mask=row < rows, other=0)
        at += rows
    total = total / count
    tl.store(out + row, total, mask=row < rows)
    if rounded is not None:
        tl.store(rounded + row, total.to(rounded.dtype.element_ty), mask=row < rows)
