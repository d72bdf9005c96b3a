"""Which images a file accepts, and the ones that it is made and checked with."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

TRACED_BATCH = 2  # torch.export takes a batch of one for a constant


@dataclass(frozen=True)
class Images:
    """(N, C, H, W) as a file takes it.

    Attributes:
        shape: (C, H, W) that the file is made with.
        batch: the only N that is accepted, or None for any.
        any_size: whether H and W may differ from ``shape``.
    """

    shape: tuple[int, ...]
    batch: int | None
    any_size: bool

    def __str__(self) -> str:
        height, width = ("height", "width") if self.any_size else self.shape[1:]
        return f"({self.batch or 'batch'}, {self.shape[0]}, {height}, {width})"

    def traced(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        """The image that the model is traced with."""
        return torch.zeros((self.batch or TRACED_BATCH, *self.shape), dtype=dtype, device=device)

    def names(self) -> dict[int, str]:
        """The free dimensions by index."""
        free = {} if self.batch else {0: "batch"}
        return free | ({2: "height", 3: "width"} if self.any_size else {})

    def dynamic_shapes(self) -> tuple[dict[int, Any]]:
        """The free dimensions as torch.export takes them: an error, not a constant, where the model fixes one."""
        return (dict.fromkeys(self.names(), torch.export.Dim.DYNAMIC),)

    def checked(self) -> list[tuple[int, ...]]:
        """Shapes to check a file with: two batches where free, two sizes where free, neither of them the traced one."""
        channels, height, width = self.shape
        # by multiples of 32, which networks with five halvings and skips across them need
        second = (height + 32, width + 64) if self.any_size else (height, width)
        return [(self.batch or 1, channels, height, width), (self.batch or 3, channels, *second)]
