"""``sfvr``: remove the channels with the least sum of feature variance ratios (FVRCP, He et al.).

SFVR_i = Σ_j Var(M_ji) / Var(Y_j): what channel i contributes to the variance of the outputs that read it.
"""

import functools
from dataclasses import dataclass
from typing import ClassVar

from surgery.graph import ModelGraph
from surgery.methods.planners.pruning.decisions import plan_pruning
from surgery.methods.planners.pruning.norm_statistics import remeasure_norms
from surgery.methods.planners.pruning.options import PruningOptions
from surgery.methods.planners.pruning.sfvr import sfvr, sfvr_from_norms
from surgery.planning.evidence import Evidence, Kind
from surgery.planning.registry import Proposal, register
from surgery.planning.selection import Selection


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
class SFVR:
    """See the module."""

    name: ClassVar[str] = "sfvr"
    Config: ClassVar[type] = SFVRConfig
    evidence: ClassVar[Kind] = "weights"
    changes: ClassVar[str] = "layers lose the channels that contribute least to the variance of what reads them"
    where: ClassVar[str] = "any coupled channels but the model's outputs"

    def plan(self, graph: ModelGraph, selection: Selection, config: SFVRConfig, evidence: Evidence) -> Proposal:
        if evidence.batches is None:
            return plan_pruning(graph, selection, config, functools.partial(sfvr_from_norms, graph=graph))
        batches = tuple(evidence.images())
        again = functools.partial(remeasure_norms, batches=batches)  # between the steps of an iterative pruning
        return plan_pruning(graph, selection, config, functools.partial(sfvr, images=batches), again)
