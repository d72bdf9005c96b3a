"""Axes: sets of channel classes that the same layers write and read, which is what a user names and a width is of."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from surgery.graph.channel_classes import Coupling, Layer, ScaledLayer
from surgery.planning.selection import matches
from surgery.planning.sites import Skipped


@dataclass(frozen=True)
class Axis:
    """Channels of a network that can be removed one by one.

    Attributes:
        name: the first layer that writes them.
        writers, readers: all layers that do, in the order in which they run.
        classes: (n,) channel classes, ascending.
        channels_each: how many outputs of the first writer a class holds: one of each group of a grouped convolution.
    """

    name: str
    writers: tuple[str, ...]
    readers: tuple[str, ...]
    classes: np.ndarray = field(repr=False)
    channels_each: int = 1

    @property
    def width(self) -> int:
        """Outputs of the first writer that belong to it."""
        return len(self.classes) * self.channels_each


def axes_of(coupling: Coupling) -> list[Axis]:
    """The removable channels of a network, grouped, in the order in which they are first written."""
    layers = list(coupling.layers.values())
    pieces = [piece for layer in layers for piece in (layer.parts if isinstance(layer, ScaledLayer) else (layer,))]
    sides = [numbers for piece in pieces for numbers in (piece.writes, piece.reads)]
    groups = _alike(coupling.removable(), sides, coupling.count())
    firsts = np.array([classes[0] for classes in groups], np.int64)
    writes = [np.isin(firsts, layer.writes) for layer in layers]
    reads = [np.isin(firsts, layer.reads) for layer in layers]
    axes = []
    for position, classes in enumerate(groups):
        writers = [layer for layer, member in zip(layers, writes, strict=True) if member[position]]
        readers = [layer.module for layer, member in zip(layers, reads, strict=True) if member[position]]
        channels_each = int((writers[0].writes == classes[0]).sum())
        names = tuple(layer.module for layer in writers)
        axes.append(Axis(names[0], names, tuple(readers), classes, channels_each))
    order = {name: position for position, name in enumerate(coupling.layers)}
    return sorted(axes, key=lambda axis: (order[axis.name], axis.classes[0]))


def _alike(classes: np.ndarray, sides: list[np.ndarray], count: int) -> list[np.ndarray]:
    """Groups of classes that occur equally often in each of the sides."""
    draws = np.random.default_rng(0).integers(1, 2**63, size=(len(sides), 2), dtype=np.uint64)
    occurrences = np.zeros((count, 2), np.uint64)  # a sum of random numbers, which tells sets of sides apart
    for side, draw in zip(sides, draws, strict=True):
        np.add.at(occurrences, side, draw)
    _, group = np.unique(occurrences[classes], axis=0, return_inverse=True)
    return [classes[group.ravel() == number] for number in range(int(group.max(initial=-1)) + 1)]


@dataclass(frozen=True)
class AxisPatterns:
    """Which axes a user wants, by patterns of the names of the layers that write them.

    Attributes:
        include, exclude: patterns; an axis is left alone if one of its layers is excluded, or if none is included.
        keep: share of the channels to keep, by pattern: of several that match, the longest decides.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    keep: Mapping[str, float] = field(default_factory=dict)

    def unwanted(self, axis: Axis) -> str:
        """Why an axis is not wanted, or ""."""
        if self.include and not _written_by(axis, self.include):
            return "not in include="
        return "in exclude=" if _written_by(axis, self.exclude) else ""

    def share(self, axis: Axis) -> float | None:
        """The share of an axis's channels that is asked for by name, or None."""
        hits = [pattern for pattern in self.keep if _written_by(axis, (pattern,))]
        return self.keep[max(hits, key=len)] if hits else None

    def check(self, axes: Iterable[Axis]) -> None:
        """Raise ValueError for a pattern that matches no layer which writes removable channels."""
        names = list(dict.fromkeys(name for axis in axes for name in axis.writers))
        for option, patterns in (("include", self.include), ("exclude", self.exclude), ("keep", tuple(self.keep))):
            for pattern in patterns:
                if not any(matches(name, pattern) for name in names):
                    shown = ", ".join(names[:6]) + (f", … ({len(names)} in all)" if len(names) > 6 else "")
                    raise ValueError(
                        f"{option} pattern {pattern!r} matches no layer whose channels can go; these are: "
                        f"{shown or 'none'}"
                    )


def _written_by(axis: Axis, patterns: Iterable[str]) -> bool:
    return any(matches(name, pattern) for pattern in patterns for name in axis.writers)


def wanted_axes(axes: Iterable[Axis], patterns: AxisPatterns) -> tuple[list[Axis], list[Skipped]]:
    """The axes that are wanted, and the others with the reason."""
    reasons = [(axis, patterns.unwanted(axis)) for axis in axes]
    skipped = [Skipped(axis.name, reason) for axis, reason in reasons if reason]
    return [axis for axis, reason in reasons if not reason], skipped


def frozen_layers(coupling: Coupling) -> list[Skipped]:
    """Layers that write channels which must stay, with the first reason of each."""
    return [Skipped(layer.module, reason) for layer in coupling.layers.values() if (reason := _reason(coupling, layer))]


def _reason(coupling: Coupling, layer: Layer) -> str:
    numbers = np.unique(layer.writes).tolist()
    frozen = [number for number in numbers if number in coupling.frozen]
    if not frozen:
        return ""
    part = "" if len(frozen) == len(numbers) else f"{len(frozen)} of {len(numbers)} channels: "
    return part + coupling.frozen[frozen[0]]
