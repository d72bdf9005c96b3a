"""Whether a forward runs with narrower axes, tried out on the meta device before anything is decided.

A forward may reshape one tensor to the width of another (``x.reshape(B, N, C)`` with C of the block's input), which no
recording of a single pass can tell.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn

from surgery.core.errors import SurgeryError
from surgery.graph import ModelGraph, record
from surgery.graph.channel_classes import Coupling
from surgery.graph.skeleton import meta_copy
from surgery.methods.planners.pruning.axes import Axis
from surgery.methods.planners.pruning.costs import PrunedCosts
from surgery.planning.cost import graph_cost
from surgery.planning.sites import Skipped
from surgery.transforms.slicing import sizes, slice_channels


@dataclass(frozen=True)
class Rehearsal:
    """A model, recorded, whose axes are tried out."""

    graph: ModelGraph
    model: nn.Module
    coupling: Coupling
    costs: PrunedCosts

    def narrowable(self, axes: Sequence[Axis]) -> tuple[list[Axis], list[Skipped]]:
        """The axes that can get narrower, and the others with the reason."""
        if self.graph.needs_values:  # such a forward does not run without values
            return list(axes), []
        failed = self._failing([axis for axis in axes if len(axis.classes) > 1])
        if not failed:
            return list(axes), []
        rest = [axis for axis in axes if axis.name not in failed]
        reason = self._failure([axis for axis in rest if len(axis.classes) > 1])
        if reason:
            failed, rest = failed | {axis.name: reason for axis in rest}, []
        return rest, [Skipped(name, why) for name, why in failed.items()]

    def _failing(self, axes: Sequence[Axis]) -> dict[str, str]:
        """Axes that fail by themselves, or else together, with the reason."""
        reason = self._failure(axes)
        if not reason:
            return {}
        if len(axes) == 1:
            return {axes[0].name: reason}
        middle = len(axes) // 2
        alone = self._failing(axes[:middle]) | self._failing(axes[middle:])
        return alone or {axis.name: reason for axis in axes}  # they fail together only

    def _failure(self, axes: Sequence[Axis]) -> str:
        """Why the model does not run with one class of each axis less, or ""."""
        if not axes:
            return ""
        gone = np.array([axis.classes[-1] for axis in axes])
        narrower, keep = meta_copy(self.model), self.coupling.kept(gone)
        mask = np.zeros(self.coupling.count(), bool)
        mask[gone] = True
        try:
            slice_channels(narrower, sizes(narrower, keep), keep)
            macs = graph_cost(record(narrower, self.graph.input_shape)).macs
        except SurgeryError as error:
            return f"the forward fails with fewer channels there ({error!s:.300})"
        predicted = self.costs.macs(mask)
        return "" if macs == predicted else f"with fewer there the forward has {macs} MACs, and not {predicted}"
