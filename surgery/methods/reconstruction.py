"""``reconstruction``: remove the channels that the others make up for (optimal brain surgeon, Hassibi and Stork 1993).

A channel's worth is the error that its removal adds to what the layer behind it gives, with the best weights for the
other channels, for each multiply-accumulate that it saves. Meant to be calibrated, which finds those weights.
"""

import functools
from dataclasses import dataclass
from typing import ClassVar

from surgery.graph import ModelGraph
from surgery.methods.planners.pruning.decisions import plan_pruning
from surgery.methods.planners.pruning.options import PruningOptions
from surgery.methods.planners.pruning.reconstruction import reconstruction
from surgery.planning.evidence import Evidence, Kind
from surgery.planning.registry import Proposal, register
from surgery.planning.selection import Selection


@dataclass(frozen=True)
class ReconstructionConfig(PruningOptions):
    """How much goes, and where (:class:`PruningOptions`).

    Attributes:
        rule: channels of all layers are compared.
        normalise: as they are.
    """

    rule: str = "global"
    normalise: bool = False


@register
class Reconstruction:
    """See the module."""

    name: ClassVar[str] = "reconstruction"
    Config: ClassVar[type] = ReconstructionConfig
    evidence: ClassVar[Kind] = "images"
    changes: ClassVar[str] = "layers lose the hidden channels that the others can make up for"
    where: ClassVar[str] = "channels that one layer alone reads; residual streams stay"

    def plan(
        self, graph: ModelGraph, selection: Selection, config: ReconstructionConfig, evidence: Evidence
    ) -> Proposal:
        per = "params" if config.params is not None else "macs"
        score = functools.partial(reconstruction, graph=graph, batches=tuple(evidence.images()), per=per)
        return plan_pruning(graph, selection, config, score)
