"""``l1``: remove the filters with the least sum of absolute weights (Li et al. 2017)."""

from dataclasses import dataclass
from typing import ClassVar

from surgery.graph import ModelGraph
from surgery.methods.planners.pruning.options import PruningOptions
from surgery.methods.planners.pruning.scored import ScoredPruning
from surgery.methods.planners.pruning.scores import Score, l1
from surgery.planning.evidence import Evidence, Kind
from surgery.planning.registry import register


@dataclass(frozen=True)
class L1Config(PruningOptions):
    """How much goes, and where; see :class:`PruningOptions`."""


@register
class L1(ScoredPruning):
    """See the module."""

    name: ClassVar[str] = "l1"
    Config: ClassVar[type] = L1Config
    evidence: ClassVar[Kind] = "weights"
    by_budget: ClassVar[bool] = True
    changes: ClassVar[str] = "layers lose the channels with the smallest weights"
    where: ClassVar[str] = "any coupled channels but the model's outputs"

    def score(self, graph: ModelGraph, config: L1Config, evidence: Evidence) -> Score:
        return l1
