"""What a call is about, on the host: sizes, layout, alignment."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import torch
import triton
import triton.language as tl

from surgery.methods.pix.ops.reference import SiteSpec

ACCUMULATORS = {torch.float64: tl.float64, torch.float32: tl.float32}
VECTOR = 16  # elements; more of a known multiple makes no load wider
RUN = 32  # channels of a subset
MARGIN = 2**24  # offsets that a tile may reach beyond an image


@dataclasses.dataclass(frozen=True)
class SiteSizes:
    """Sizes of one site: x (images, channels, height, width) becomes `subsets` maps on the strided grid."""

    images: int
    channels: int
    subsets: int
    height: int
    width: int
    stride: tuple[int, int]
    strided: bool
    channels_last: bool

    @functools.cached_property
    def output(self) -> tuple[int, int, int, int]:
        """Shape of y."""
        return self.images, self.subsets, -(-self.height // self.stride[0]), -(-self.width // self.stride[1])

    @property
    def form(self) -> torch.memory_format:
        """The layout of x and y."""
        return torch.channels_last if self.channels_last else torch.contiguous_format

    @functools.cached_property
    def plane(self) -> int:
        """Pixels of a map of x."""
        return self.height * self.width

    @functools.cached_property
    def pixels(self) -> int:
        """Pixels of a map of y."""
        return self.output[2] * self.output[3]

    @functools.cached_property
    def longest(self) -> int:
        """Channels of the largest subset."""
        return -(-self.channels // self.subsets)

    @functools.cached_property
    def has_runs(self) -> bool:
        """Whether a subset lies together in memory, to be loaded along its channels rather than one at a time."""
        return self.channels_last and not self.strided and self.longest > 1

    @functools.cached_property
    def run(self) -> Mapping[str, int]:
        """What only kernels over runs take: channels of a subset that a tile holds at once."""
        return {"KB": min(RUN, triton.next_power_of_2(self.longest))} if self.has_runs else {}

    @functools.cached_property
    def buckets(self) -> tuple[int, int]:
        """Rough sizes of a map of y, by which kernels are tuned: powers of four of its pixels and its channels."""
        return self.pixels.bit_length() // 2, self.subsets.bit_length() // 2

    @functools.cached_property
    def arguments(self) -> Mapping[str, Any]:
        """What every kernel over subsets takes."""
        contiguous = (self.channels, self.subsets) if self.channels_last else (self.plane, self.pixels)
        return {
            "channels": self.channels,
            "subsets": self.subsets,
            "plane": self.plane,
            "pixels": self.pixels,
            "width": self.width,
            "out_width": self.output[3],
            "stride_h": self.stride[0],
            "stride_w": self.stride[1],
            "K": self.longest,
            "EVEN": self.channels % self.subsets == 0,
            "STRIDED": self.strided,
            "CHANNELS_LAST": self.channels_last,
            "UNIT_STRIDE": self.stride == (1, 1),
            "ALIGN": alignment(*contiguous),
            "WIDE": is_wide(self.channels, self.plane),
        }


@functools.lru_cache(maxsize=4096)
def site_sizes(shape: tuple[int, int, int, int], subsets: int, spec: SiteSpec, form: torch.memory_format) -> SiteSizes:
    """The sizes for an x of this shape and layout; kept, since every call asks for them."""
    strided, channels_last = spec.grouping == "strided", form == torch.channels_last
    return SiteSizes(*shape[:2], subsets, *shape[2:], spec.stride, strided, channels_last)


def alignment(*sizes: int) -> int:
    """The largest power of two, up to a vector's length, that divides all sizes."""
    return min(VECTOR, *(size & -size for size in sizes))


def is_wide(channels: int, pixels: int) -> bool:
    """Whether offsets within one image need 64 bits (those of images always have them)."""
    return channels * pixels >= 2**31 - MARGIN


@dataclasses.dataclass(frozen=True)
class Decision:
    """What becomes of extreme and mean; tau as p's dtype has it, which is what comparing with p means in PyTorch."""

    tau: float
    mode: str
    minimum: bool
    activation: str
    accumulator: tl.dtype

    @functools.cached_property
    def arguments(self) -> Mapping[str, Any]:
        """What every kernel that decides takes."""
        return {"tau": self.tau, "MODE": self.mode, "ACC": self.accumulator}


@functools.lru_cache(maxsize=4096)
def decision(spec: SiteSpec, x: torch.dtype, p: torch.dtype) -> Decision:
    """The decision for x and p of these dtypes; kept, as sizes are."""
    mode = {"max+avg": spec.fusion, "avg": "mean"}.get(spec.operator, "extreme")
    rounded = torch.tensor(spec.tau, dtype=p, device="cpu").item()
    exact = torch.float64 if x == torch.float64 else torch.float32
    return Decision(rounded, mode, spec.operator == "min", spec.activation, ACCUMULATORS[exact])
