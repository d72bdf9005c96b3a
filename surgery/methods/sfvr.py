"""``sfvr``: remove the channels with the least sum of feature variance ratios (FVRCP, He et al.).

SFVR_i = Σ_j Var(M_ji) / Var(Y_j): what channel i contributes to the variance of the outputs that read it.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from surgery.graph import ModelGraph
from surgery.methods.planners.pruning.norm_statistics import remeasure_norms
from surgery.methods.planners.pruning.options import PruningOptions
from surgery.methods.planners.pruning.scored import ScoredPruning
from surgery.methods.planners.pruning.scores import Score
from surgery.methods.planners.pruning.sfvr import sfvr, sfvr_from_norms
from surgery.planning.evidence import Evidence, Kind
from surgery.planning.registry import register


@dataclass(frozen=True)
class SFVRConfig(PruningOptions):
    """How much goes, and where (:class:`PruningOptions`).

    Attributes:
        rule: channels of all layers are compared, as published.
        normalise: as they are, as published.
    """

    rule: str = "global"
    normalise: bool = False


@register
class SFVR(ScoredPruning):
    """See the module."""

    name: ClassVar[str] = "sfvr"
    Config: ClassVar[type] = SFVRConfig
    evidence: ClassVar[Kind] = "weights"
    by_budget: ClassVar[bool] = True
    changes: ClassVar[str] = "layers lose the channels that contribute least to the variance of what reads them"
    where: ClassVar[str] = "any coupled channels but the model's outputs"

    def score(self, graph: ModelGraph, config: SFVRConfig, evidence: Evidence) -> Score:
        if evidence.batches is None:
            return functools.partial(sfvr_from_norms, graph=graph)
        return functools.partial(sfvr, images=tuple(evidence.images()))

    def recalculate(self, evidence: Evidence) -> Callable[[nn.Module], None] | None:
        if evidence.batches is None:
            return None
        return functools.partial(remeasure_norms, batches=tuple(evidence.images()))
