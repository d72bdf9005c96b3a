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

    @property
    def depthwise(self) -> bool:
        """Whether each output reads one input."""
        return self.groups == len(self.reads) > 1

    def macs_left(self, stays: np.ndarray) -> int:
        """Multiply-accumulates when only the classes of a mask stay."""
        return self.macs_with(int(stays[self.reads].sum()), int(stays[self.writes].sum()))

    def macs_with(self, inputs: int, outputs: int) -> int:
        """Multiply-accumulates with so many of the inputs and outputs."""
        if self.depthwise:
            return self.macs * outputs // len(self.writes)
        return self.macs * outputs * inputs // (len(self.writes) * len(self.reads))

    def without(self, gone: np.ndarray) -> "Layer":
        """The layer when the classes ``gone`` are removed."""
        reads, writes = (numbers[~np.isin(numbers, gone)] for numbers in (self.reads, self.writes))
        groups = len(reads) if self.depthwise else self.groups
        return Layer(self.module, reads, writes, self.macs_with(len(reads), len(writes)), groups)


@dataclass(frozen=True)
class ScaledLayer(Layer):
    """A convolution between several maps, of several sizes.

    Attributes:
        parts: a layer for each map in and map out that are linked.
    """

    parts: tuple[Layer, ...] = ()

    def macs_left(self, stays: np.ndarray) -> int:
        return sum(part.macs_left(stays) for part in self.parts)

    def without(self, gone: np.ndarray) -> "ScaledLayer":
        parts = tuple(part.without(gone) for part in self.parts)
        reads, writes = (numbers[~np.isin(numbers, gone)] for numbers in (self.reads, self.writes))
        return ScaledLayer(self.module, reads, writes, sum(part.macs for part in parts), 1, parts)


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

    def count(self) -> int:
        """A number above every class's."""
        numbers = [side.numbers for side in self.sides]
        numbers += [side for layer in self.layers.values() for side in (layer.reads, layer.writes)]
        return 1 + max((int(side.max()) for side in numbers if side.size), default=0)

    def without(self, gone: np.ndarray) -> "Coupling":
        """What is left when the classes ``gone`` are removed; classes keep their numbers."""
        stays = self._stays(gone)
        sides = [Side(s.module, s.parameter, s.dim, s.numbers[stays[s.numbers]]) for s in self.sides]
        return Coupling({name: layer.without(gone) for name, layer in self.layers.items()}, sides, self.frozen)

    def kept(self, gone: np.ndarray) -> dict[tuple[str, str], dict[int, np.ndarray]]:
        """Indices that stay of every (module, parameter) and dimension that loses some to the classes ``gone``."""
        keep: dict[tuple[str, str], dict[int, np.ndarray]] = {}
        stays = self._stays(gone)
        for side in self.sides:
            mask = stays[side.numbers]
            if not mask.all():
                keep.setdefault((side.module, side.parameter), {})[side.dim] = np.flatnonzero(mask)
        return keep

    def _stays(self, gone: np.ndarray) -> np.ndarray:
        mask = np.ones(self.count(), bool)
        mask[gone] = False
        return mask


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
