"""What a method's layer tells the rest of the package: that it is one piece, and what it costs."""

import abc
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


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

    def observe(self, x: Tensor) -> Tensor | None:
        """What :meth:`start` needs to know of an input (N, C, H, W), a row for each image; None where it needs nothing.

        Must not depend on what ``start`` sets.
        """
        return None

    def start(self, observed: Tensor) -> None:
        """Set the layer's own parameters from what was observed of all images, before what follows it is fitted.

        Doing so twice must change nothing.
        """

    @abc.abstractmethod
    def cost(self, inputs: Any, outputs: Any) -> OpCost:
        """Cost for one image.

        Args:
            inputs: shape of what the layer takes: (N, C, H, W) of one map, a list or dict of shapes, nested as the
                maps are, where its argument is one (``[(N, C, H, W), (N, C, H, W)]``), and a list of these where
                several arguments hold tensors.
            outputs: the same of what it gives.
        """
