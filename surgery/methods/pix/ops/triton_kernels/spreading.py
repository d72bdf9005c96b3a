"""dx of a threshold site in one launch: what reaches extreme and mean, and the same for every pixel by way of p."""

import torch
from torch import Tensor

from surgery.methods.pix.ops.triton_kernels import planes, runs
from surgery.methods.pix.ops.triton_kernels.fusing import grid
from surgery.methods.pix.ops.triton_kernels.launching import KEY, Tuned, tiles
from surgery.methods.pix.ops.triton_kernels.site import Decision, SiteSizes

_PLANES = Tuned(
    planes.spread_planes,
    tiles("BLOCK_O", "BLOCK_P", (8, 128), (2, 512), (4, 256), (32, 32), (64, 16), (128, 8)),
    tiles("BLOCK_O", "BLOCK_P", (4, 8))[0],
    KEY,
)
_RUNS = Tuned(
    runs.spread_runs,
    tiles("LANES", "BLOCK_P", (128, 16), (64, 32), (256, 8), (256, 16), (512, 8)),
    tiles("LANES", "BLOCK_P", (64, 4))[0],
    KEY,
)


def spread(sizes: SiteSizes, decision: Decision, grad: Tensor, p: Tensor, index: Tensor, base: Tensor) -> Tensor:
    """dx from grad, p, index (N, C_out, H', W') of the extremes, and base (N, C) for every pixel."""
    shape = (sizes.images, sizes.channels, sizes.height, sizes.width)
    dx = torch.empty(shape, dtype=grad.dtype, device=grad.device, memory_format=sizes.form)
    kernel = _RUNS if sizes.has_runs else _PLANES
    kernel(
        grid(sizes, sizes.plane),
        grad=grad,
        p=p,
        index=index,
        base=base,
        dx=dx,
        pixel_bucket=sizes.buckets[0],
        subset_bucket=sizes.buckets[1],
        **sizes.arguments,
        **decision.arguments,
        **sizes.run,
    )
    return dx
