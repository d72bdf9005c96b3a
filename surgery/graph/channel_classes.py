"""Classes of channels that can only be removed whole, and the parameters that go with them."""

from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Side:
    """One dimension of a parameter or buffer that is indexed by channels.

    Attributes:
        module: qualified name of the owner.
        parameter: its name there.
        dim: which dimension.
        numbers: (size,) channel class of every index.
    """

    module: str
    parameter: str
    dim: int
    numbers: np.ndarray = field(repr=False)


@dataclass(frozen=True)
class Layer:
    """A convolution or linear layer as a consumer and producer of channels.

    Attributes:
        module: qualified name.
        reads, writes: channel class of every input and output.
        macs: multiply-accumulates for one image with all of them.
        groups: of a convolution.
    """

    module: str
    reads: np.ndarray = field(repr=False)
    writes: np.ndarray = field(repr=False)
    macs: int
    groups: int = 1

    def macs_without(self, gone: np.ndarray) -> float:
        """Multiply-accumulates when the classes ``gone`` are removed."""
        outputs = (~np.isin(self.writes, gone)).mean()
        if self.groups == len(self.reads):
            return self.macs * outputs
        return self.macs * outputs * (~np.isin(self.reads, gone)).mean()


@dataclass
class Coupling:
    """The channels of a network, in classes that can only be removed whole.

    Attributes:
        layers: convolutions and linear layers by name, in the order in which they run.
        sides: every parameter dimension that goes with channels.
        frozen: why a class must stay, by class.
    """

    layers: dict[str, Layer]
    sides: list[Side]
    frozen: dict[int, str]

    def removable(self) -> np.ndarray:
        """Classes that some layer writes and nothing freezes, ascending."""
        written = [layer.writes for layer in self.layers.values()]
        classes = np.unique(np.concatenate(written)) if written else np.empty(0, np.int64)
        return classes[[number not in self.frozen for number in classes.tolist()]]


def connected(count: int, edges: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """The least number of every number's connected component, of ``count`` numbers and edges between pairs of them."""
    classes = np.arange(count)
    if not edges:
        return classes
    one, two = (np.concatenate(ends) for ends in zip(*edges, strict=True))
    while True:
        low = np.minimum(classes[one], classes[two])
        before = classes.copy()
        np.minimum.at(classes, classes[one], low)
        np.minimum.at(classes, classes[two], low)
        classes = classes[classes]
        if (classes == before).all():
            return classes
