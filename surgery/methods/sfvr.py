"""``sfvr``: remove the channels with the least sum of feature variance ratios (FVRCP, He et al.).

SFVR_i = Σ_j Var(M_ji) / Var(Y_j): what channel i contributes to the variance of the outputs that read it.
"""

import dataclasses
import functools
from dataclasses import dataclass
from typing import ClassVar

from surgery.graph import ModelGraph
from surgery.methods.planners.pruning.decisions import plan_pruning
from surgery.methods.planners.pruning.options import PruningOptions
from surgery.methods.planners.pruning.sfvr import sfvr, sfvr_from_norms
from surgery.planning.evidence import Evidence, Kind
from surgery.planning.registry import Proposal, register
from surgery.planning.selection import Selection


@dataclass(frozen=True)
class SFVRConfig(PruningOptions):
    """How much goes, and where (:class:`PruningOptions`).

    Attributes:
        rule: "auto" compares the channels of all layers, as published, where variances are measured on images
            ("global"), and removes the same share of every axis ("uniform") where BatchNorms are all there is: what
            these tell is good enough within an axis only.
        normalise: with "global": channels are compared as they are, as published.
    """

    rules: ClassVar[tuple[str, ...]] = ("auto", *PruningOptions.rules)

    rule: str = "auto"
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
        measured = evidence.batches is not None
        if config.rule == "auto":
            config = dataclasses.replace(config, rule="global" if measured else "uniform")
        if measured:
            return plan_pruning(graph, selection, config, functools.partial(sfvr, images=tuple(evidence.images())))
        return plan_pruning(graph, selection, config, functools.partial(sfvr_from_norms, graph=graph))
