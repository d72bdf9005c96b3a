"""The fusion of x with p, on the host: which kernel, and its launch."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import triton
from torch import Tensor

from surgery.methods.pix.ops.triton_kernels import planes, runs
from surgery.methods.pix.ops.triton_kernels.launching import KEY, Grid, Tuned, tiles
from surgery.methods.pix.ops.triton_kernels.site import Decision, SiteSizes

SMALL = 8192  # elements of one image, and of the weight, up to which one program does all: they fit its registers
_PLANES = Tuned(
    planes.fuse_planes,
    tiles("BLOCK_O", "BLOCK_P", (8, 128), (2, 512), (4, 256), (32, 32), (64, 16), (128, 8)),
    tiles("BLOCK_O", "BLOCK_P", (4, 8))[0],
    KEY,
)
_RUNS = Tuned(
    runs.fuse_runs,
    tiles("LANES", "BLOCK_P", (128, 16), (64, 32), (256, 8), (256, 16), (512, 8)),
    tiles("LANES", "BLOCK_P", (64, 4))[0],
    KEY,
)


@dataclasses.dataclass(frozen=True, eq=False)
class Outputs:
    """What the launches of a forward pass write."""

    y: Tensor
    index: Tensor | None = None  # of each extreme, where wanted
    p: Tensor | None = None  # None: the caller has it
    context: Tensor | None = None  # the descriptor, where pooled


def fuse(sizes: SiteSizes, decision: Decision, x: Tensor, predicted: Tensor, outputs: Outputs) -> None:
    """y, and index where wanted, from x and p; where p is an output too, what is ``predicted`` are its logits."""
    kernel = _RUNS if sizes.has_runs else _PLANES
    predicts = outputs.p is not None
    kernel(
        grid(sizes, sizes.pixels),
        x=x,
        predicted=predicted,
        y=outputs.y,
        index=outputs.index,
        p=outputs.p,
        pixel_bucket=sizes.buckets[0],
        subset_bucket=sizes.buckets[1],
        MINIMUM=decision.minimum,
        ACTIVATION=decision.activation if predicts else "none",
        REVERSED=predicts,  # after the pooling pass over x
        **sizes.arguments,
        **decision.arguments,
        **sizes.run,
    )


def grid(sizes: SiteSizes, pixels: int) -> Grid:
    """Programs over images, subsets and so many pixels."""

    def programs(meta: Mapping[str, Any]) -> tuple[int, ...]:
        subsets = meta["LANES"] // meta["KB"] if sizes.has_runs else meta["BLOCK_O"]
        return (sizes.images * triton.cdiv(sizes.subsets, subsets) * triton.cdiv(pixels, meta["BLOCK_P"]),)

    return programs


def is_small(sizes: SiteSizes) -> bool:
    """Whether one program per image pools, predicts and fuses. The batch has no say: an image's result is its own."""
    channels, subsets, plane = (triton.next_power_of_2(v) for v in (sizes.channels, sizes.subsets, sizes.plane))
    return channels * max(subsets, plane) <= SMALL


def small_site(
    sizes: SiteSizes, decision: Decision, x: Tensor, weight: Tensor, bias: Tensor | None, outputs: Outputs
) -> None:
    """The whole site in one launch: all outputs from x."""
    blocks = {
        "BLOCK_C": triton.next_power_of_2(sizes.channels),
        "BLOCK_O": triton.next_power_of_2(sizes.subsets),
        "BLOCK_Q": triton.next_power_of_2(sizes.plane),
        "BLOCK_P": triton.next_power_of_2(sizes.pixels),
    }
    planes.fuse_small[(sizes.images,)](
        x=x,
        weight=weight,
        bias=bias,
        y=outputs.y,
        p=outputs.p,
        context=outputs.context,
        index=outputs.index,
        MINIMUM=decision.minimum,
        ACTIVATION=decision.activation,
        **sizes.arguments,
        **decision.arguments,
        **blocks,
        num_warps=8 if blocks["BLOCK_C"] * blocks["BLOCK_Q"] > 2048 else 4,
    )
