"""``taylor``: remove the channels that the loss depends on least, to first order (Molchanov et al. 2017, 2019)."""

import functools
from dataclasses import dataclass
from typing import ClassVar

from surgery.graph import ModelGraph
from surgery.methods.planners.pruning.options import PruningOptions
from surgery.methods.planners.pruning.scored import ScoredPruning
from surgery.methods.planners.pruning.scores import Score, taylor
from surgery.planning.evidence import Evidence, Kind
from surgery.planning.registry import register


@dataclass(frozen=True)
class TaylorConfig(PruningOptions):
    """How much goes, and where; see :class:`PruningOptions`."""


@register
class Taylor(ScoredPruning):
    """See the module."""

    name: ClassVar[str] = "taylor"
    Config: ClassVar[type] = TaylorConfig
    evidence: ClassVar[Kind] = "labelled images"
    by_budget: ClassVar[bool] = True
    changes: ClassVar[str] = "layers lose the channels that the loss depends on least"
    where: ClassVar[str] = "any coupled channels but the model's outputs"

    def score(self, graph: ModelGraph, config: TaylorConfig, evidence: Evidence) -> Score:
        return functools.partial(taylor, batches=tuple(evidence.labelled_images()))
