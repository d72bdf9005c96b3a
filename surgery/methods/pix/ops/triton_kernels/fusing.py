"""The fusion of x with p, on the host: which kernel, and its launch."""

from collections.abc import Mapping
from typing import Any

import triton
from torch import Tensor

from surgery.methods.pix.ops.triton_kernels import planes, runs
from surgery.methods.pix.ops.triton_kernels.launching import KEY, Grid, Tuned, tiles
from surgery.methods.pix.ops.triton_kernels.site import Decision, Site

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


def fuse(
    site: Site,
    decision: Decision,
    x: Tensor,
    given: Tensor,
    y: Tensor,
    index: Tensor | None = None,
    p: Tensor | None = None,
    activation: str = "none",
) -> None:
    """y, and index where wanted, from x and p `given`; or from its logits, with p as another output."""
    kernel = _RUNS if site.has_runs else _PLANES
    kernel(
        grid(site, site.pixels),
        x=x,
        given=given,
        y=y,
        index=index,
        p=p,
        pixel_bucket=site.buckets[0],
        subset_bucket=site.buckets[1],
        MINIMUM=decision.minimum,
        ACTIVATION=activation,
        REVERSED=p is not None,  # after the pooling pass over x
        **site.arguments,
        **decision.arguments,
        **site.run,
    )


def grid(site: Site, pixels: int) -> Grid:
    """Programs over images, subsets and so many pixels."""

    def programs(meta: Mapping[str, Any]) -> tuple[int, ...]:
        subsets = meta["LANES"] // meta["KB"] if site.has_runs else meta["BLOCK_O"]
        return (site.images * triton.cdiv(site.subsets, subsets) * triton.cdiv(pixels, meta["BLOCK_P"]),)

    return programs


def is_small(site: Site) -> bool:
    """Whether one program per image pools, predicts and fuses. The batch has no say: an image's result is its own."""
    channels, subsets, plane = (triton.next_power_of_2(v) for v in (site.channels, site.subsets, site.plane))
    return channels * max(subsets, plane) <= SMALL


def small_site(
    site: Site,
    decision: Decision,
    activation: str,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    y: Tensor,
    p: Tensor,
    context: Tensor,
    index: Tensor | None,
) -> None:
    """The whole site in one launch: y, p, context and, where wanted, index from x."""
    blocks = {
        "BLOCK_C": triton.next_power_of_2(site.channels),
        "BLOCK_O": triton.next_power_of_2(site.subsets),
        "BLOCK_Q": triton.next_power_of_2(site.plane),
        "BLOCK_P": triton.next_power_of_2(site.pixels),
    }
    planes.fuse_small[(site.images,)](
        x=x,
        weight=weight,
        bias=bias,
        y=y,
        p=p,
        context=context,
        index=index,
        MINIMUM=decision.minimum,
        ACTIVATION=activation,
        **site.arguments,
        **decision.arguments,
        **blocks,
        num_warps=8 if blocks["BLOCK_C"] * blocks["BLOCK_Q"] > 2048 else 4,
    )
