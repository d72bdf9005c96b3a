"""Launching kernels whose tiles are tuned by measurement, also where nothing may be measured."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import triton

# the batch is not among them: a last, smaller one runs what the others run
KEY = ("K", "STRIDED", "CHANNELS_LAST", "UNIT_STRIDE", "pixel_bucket", "subset_bucket")

Grid = Callable[[Mapping[str, Any]], tuple[int, ...]]


def tiles(first: str, second: str, *sizes: tuple[int, int]) -> list[triton.Config]:
    """Candidates, by the names of a tile's dimensions."""
    return [triton.Config({first: a, second: b}, num_warps=4) for a, b in sizes]


class Tuned:
    """An elementwise kernel with candidate tiles, of which the fastest is kept per kind of site.

    None of them changes the order of a sum that is longer than a subset. The first candidate is the default: it
    runs in the interpreter, and where a CUDA graph is captured before the kernel was ever measured, as measuring
    waits for the device.
    """

    def __init__(self, kernel: Any, candidates: Sequence[triton.Config], small: triton.Config, key: Sequence[str]):
        interpreted = not isinstance(kernel, triton.JITFunction)
        self.kernel, self.key = kernel, tuple(key)
        self.default = small if interpreted else candidates[0]
        self.tuned = triton.autotune([small] if interpreted else list(candidates), key=list(key))(kernel)
        self.measured: set[tuple[Any, ...]] = set()

    def __call__(self, grid: Grid, **arguments: Any) -> None:
        """Launch with keyword arguments alone."""
        kind = (
            *(arguments[name] for name in self.key),
            *(value.dtype for value in arguments.values() if isinstance(value, torch.Tensor)),
        )
        if kind not in self.measured and torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
            self.kernel[grid](**arguments, **self.default.all_kwargs())
            return
        self.tuned[grid](**arguments)
        self.measured.add(kind)
