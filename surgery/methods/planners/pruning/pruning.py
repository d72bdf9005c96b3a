"""Plan a pruning: which channels stay, how wide every layer is then, and what it costs."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import nn

from surgery.core.table import si
from surgery.graph import ModelGraph
from surgery.graph.channel_classes import Coupling
from surgery.graph.training_heads import couple_all
from surgery.methods.planners.pruning.axes import Axis, AxisPatterns, axes_of, frozen_layers, wanted_axes
from surgery.methods.planners.pruning.costs import PrunedCosts
from surgery.methods.planners.pruning.rehearsal import Rehearsal
from surgery.methods.planners.pruning.request import PruningRequest
from surgery.methods.planners.pruning.scores import Score
from surgery.methods.planners.pruning.selection import (
    TOLERANCE,
    Limits,
    Target,
    Unit,
    kept_shares,
    meet,
    normalised,
    order_of_removal,
    units_of,
)
from surgery.planning.sites import Skipped
from surgery.transforms.slicing import Keep, Sizes, sizes, slice_channels


@dataclass(frozen=True)
class PruningRow:
    """A row of a plan: how wide an axis was and is.

    Attributes:
        name: the first layer that writes its channels.
        before, after: channels of that layer.
        note: which other layers write them.
    """

    name: str
    before: int
    after: int
    note: str = ""


@dataclass(frozen=True)
class PruningResult:
    """What a pruning does.

    Attributes:
        keep: indices that stay, by (module, parameter) and dimension.
        sizes: the same as a form that a file can hold, without the indices.
        rows: every axis that gets narrower.
        skipped: axes and layers that stay, with the reason.
        macs, params: of what is left; multiply-accumulates for one image.
        original_macs, original_params: of the whole.
        note: one sentence where the target is missed by more than one per cent; else "".
        gone: (n,) classes of the coupling that are removed.
    """

    keep: Keep = field(repr=False)
    sizes: Sizes = field(repr=False)
    rows: tuple[PruningRow, ...]
    skipped: tuple[Skipped, ...] = field(repr=False)
    macs: int
    params: int
    original_macs: int
    original_params: int
    note: str = ""
    gone: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64), repr=False)


def prune_plan(
    graph: ModelGraph,
    model: nn.Module,
    score: Score,
    request: PruningRequest,
    recalculate: Callable[[nn.Module], None] | None = None,
) -> PruningResult:
    """Decide which channels of a model go. The model itself is not changed.

    Args:
        graph: the model, recorded.
        score: what its channels are worth. With ``request.steps`` above 1 it is asked again, of a copy without the
            channels that went, and with its coupling, in which channels keep their numbers.
        recalculate: what else is done to each such copy before, such as measuring its normalisations' statistics.

    Raises:
        ValueError: a pattern matches nothing.
    """
    coupling = couple_all(graph, model)
    selection = AxisSelection(graph, model, coupling, request)
    gone, current, remaining = selection.nothing(), model, coupling
    for step in range(1, request.steps + 1):
        scores = score(current, remaining).copy()
        scores[gone] = -np.inf  # they went before, and so they go first
        gone = selection.select(scores, step / request.steps)
        if step < request.steps:
            removed = np.flatnonzero(gone)
            current, remaining = copy.deepcopy(model), coupling.without(removed)
            keep = coupling.kept(removed)
            slice_channels(current, sizes(model, keep), keep)
            if recalculate is not None:
                recalculate(current)
    return selection.result(model, gone)


class AxisSelection:
    """The axes of a network that a request is for, and which of their channels go by given scores."""

    def __init__(self, graph: ModelGraph, model: nn.Module, coupling: Coupling, request: PruningRequest) -> None:
        self.coupling, self.request = coupling, request
        self.costs = PrunedCosts(graph, coupling)
        assert isinstance(request.include, tuple) and isinstance(request.exclude, tuple)
        self.patterns = AxisPatterns(request.include, request.exclude, request.shares)
        everything = axes_of(coupling)
        self.patterns.check(everything)
        self.axes, self.skipped = wanted_axes(everything, self.patterns)
        self.skipped += frozen_layers(coupling)
        self.axes, failed = Rehearsal(graph, model, coupling, self.costs).narrowable(self.axes)
        self.skipped += failed

    def nothing(self) -> np.ndarray:
        return np.zeros(self.coupling.count(), bool)

    def select(self, scores: np.ndarray, progress: float) -> np.ndarray:
        """A mask of the classes that go, after ``progress`` (up to 1) of the way to what was asked for."""
        limits = Limits(self.request.least, self.request.least_share, self.request.round_to)
        if self.request.threshold is not None:
            return self._below(scores, limits, self.request.threshold)
        if self.request.rule == "global" and self.request.normalise:
            for axis in self.axes:
                scores = normalised(axis, scores)
        order = order_of_removal(self.axes, scores, limits, self.request.rule)
        gone, left = self._by_share(order, progress)
        target = self.target(progress)
        return gone if target is None else meet(target, left, gone)

    def _below(self, scores: np.ndarray, limits: Limits, threshold: float) -> np.ndarray:
        gone = self.nothing()
        for position, axis in enumerate(self.axes):
            for unit in units_of(position, axis, scores, limits.removable(axis)):
                if unit.score < threshold:
                    gone[unit.classes] = True
        return gone

    def _by_share(self, order: Sequence[Unit], progress: float) -> tuple[np.ndarray, list[Unit]]:
        """What goes where a share of an axis is asked for, and the units of the other axes."""
        gone = self.nothing()
        if self.request.keep is None:
            return gone, list(order)
        by_axis: dict[int, list[Unit]] = {}
        for unit in order:
            by_axis.setdefault(unit.axis, []).append(unit)
        shares = [self._share(axis) for axis in self.axes]
        for position, units in by_axis.items():
            share = shares[position]
            for unit in () if share is None else kept_shares(self.axes[position], units, share**progress):
                gone[unit.classes] = True
        return gone, [unit for unit in order if shares[unit.axis] is None]

    def _share(self, axis: Axis) -> float | None:
        keep = self.request.keep
        if keep is None:
            return None
        if isinstance(keep, float | int):
            return keep
        share = self.patterns.share(axis)
        return share if share is not None or self.target(1) is not None else 1.0

    def target(self, progress: float) -> Target | None:
        if self.request.macs is not None:
            return Target("macs", self.request.macs**progress, self.costs.original_macs, self.costs.macs)
        if self.request.params is not None:
            return Target("params", self.request.params**progress, self.costs.original_params, self.costs.params)
        return None

    def note(self, gone: np.ndarray) -> str:
        """A sentence where the target is missed."""
        target = self.target(1)
        miss = target.miss(gone) if target is not None else 0.0
        if target is None or abs(miss) <= TOLERANCE:
            return ""
        reason = "what else there is must stay" if miss > 0 else "the next step of a width is too coarse"
        return (
            f"{target.name}={target.share:g} cannot be met within 1 %: the nearest share is {target.share + miss:.3f} "
            f"({si(target.of(gone))} of {si(target.original)}); {reason}"
        )

    def result(self, model: nn.Module, gone: np.ndarray) -> PruningResult:
        removed = np.flatnonzero(gone)
        keep = self.coupling.kept(removed)
        rows, stay = [], []
        for axis in self.axes:
            after = axis.width - int(gone[axis.classes].sum()) * axis.channels_each
            if after < axis.width:
                rows.append(PruningRow(axis.name, axis.width, after, _others(axis.writers[1:])))
            else:
                stay.append(Skipped(axis.name, self._why_whole(axis)))
        costs = self.costs
        return PruningResult(
            keep,
            sizes(model, keep),
            tuple(rows),
            (*stay, *self.skipped),
            costs.macs(gone),
            costs.params(gone),
            costs.original_macs,
            costs.original_params,
            self.note(gone),
            removed,
        )

    def _why_whole(self, axis: Axis) -> str:
        limits = Limits(self.request.least, self.request.least_share, self.request.round_to)
        if not limits.removable(axis):
            return f"its {axis.width} channels are as few as may stay"
        return "all its channels stay, by what was asked for"


def _others(writers: Sequence[str], most: int = 3) -> str:
    """The other layers that write an axis, as a note: by name, of a long stream the first few."""
    if not writers:
        return ""
    named = ", ".join(writers[:most])
    return f"with {named} and {len(writers) - most} more" if len(writers) > most + 1 else f"with {', '.join(writers)}"


__all__ = ["PruningRequest", "PruningResult", "PruningRow", "prune_plan"]
