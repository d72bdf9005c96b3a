"""What a method's layer tells the rest of the package: that it is one piece, and what it costs."""

import abc
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class OpCost:
    """Cost of one operation for one image.

    Attributes:
        macs: multiply-accumulates of convolutions and linears.
        flops: everything, by the formulas of PiX supplement C and D (a multiply-accumulate counts once).
        memory: elements written, in-place operations (norms, activations) not counted (PiX supplement D).
    """

    macs: int = 0
    flops: int = 0
    memory: int = 0

    def __add__(self, other: "OpCost") -> "OpCost":
        return OpCost(self.macs + other.macs, self.flops + other.flops, self.memory + other.memory)


class SurgeryLayer(nn.Module, abc.ABC):
    """Base of the layers that methods put into models. A recorded graph shows one as a single node.

    ``keeps_sign`` says that a non-negative input gives a non-negative output.
    """

    keeps_sign: bool = False

    @abc.abstractmethod
    def cost(self, in_shape: tuple[int, ...], out_shape: tuple[int, ...]) -> OpCost:
        """Cost for one image; shapes are (N, C, H, W)."""
