"""``taylor``: remove the channels that the loss depends on least, to first order (Molchanov et al. 2017, 2019)."""

import functools
from dataclasses import dataclass
from typing import ClassVar

from surgery.graph import ModelGraph
from surgery.methods.planners.pruning.decisions import plan_pruning
from surgery.methods.planners.pruning.options import PruningOptions
from surgery.methods.planners.pruning.scores import taylor
from surgery.planning.evidence import Evidence, Kind
from surgery.planning.registry import Proposal, register
from surgery.planning.selection import Selection


@dataclass(frozen=True)
class TaylorConfig(PruningOptions):
    """How much goes, and where; see :class:`PruningOptions`."""


@register
class Taylor:
    """See the module."""

    name: ClassVar[str] = "taylor"
    Config: ClassVar[type] = TaylorConfig
    evidence: ClassVar[Kind] = "labelled images"
    changes: ClassVar[str] = "layers lose the channels that the loss depends on least"
    where: ClassVar[str] = "any coupled channels but the model's outputs"

    def plan(self, graph: ModelGraph, selection: Selection, config: TaylorConfig, evidence: Evidence) -> Proposal:
        batches = tuple(evidence.labelled_images())
        return plan_pruning(graph, selection, config, functools.partial(taylor, batches=batches))
