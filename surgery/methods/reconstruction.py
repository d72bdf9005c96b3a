"""``reconstruction``: remove the channels that the others make up for (optimal brain surgeon, Hassibi and Stork 1993).

A channel's worth is the error that its removal adds to what the layer behind it gives, with the best weights for the
other channels, for each multiply-accumulate that it saves. Meant to be calibrated, which finds those weights.
"""

import functools
from dataclasses import dataclass
from typing import ClassVar

from surgery.graph import ModelGraph
from surgery.methods.planners.pruning.options import PruningOptions
from surgery.methods.planners.pruning.reconstruction import reconstruction
from surgery.methods.planners.pruning.scored import ScoredPruning
from surgery.methods.planners.pruning.scores import Score
from surgery.planning.evidence import Evidence, Kind
from surgery.planning.registry import register


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
class Reconstruction(ScoredPruning):
    """See the module."""

    name: ClassVar[str] = "reconstruction"
    by_site: ClassVar[bool] = True
    Config: ClassVar[type] = ReconstructionConfig
    evidence: ClassVar[Kind] = "images"
    changes: ClassVar[str] = "layers lose the hidden channels that the others can make up for"
    where: ClassVar[str] = "channels that one layer alone reads; residual streams stay"

    def score(self, graph: ModelGraph, config: ReconstructionConfig, evidence: Evidence) -> Score:
        per = "params" if config.params is not None else "macs"
        return functools.partial(reconstruction, graph=graph, batches=tuple(evidence.images()), per=per)
