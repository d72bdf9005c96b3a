"""``random``: remove channels by lot, the control that every score must beat."""

import functools
from dataclasses import dataclass
from typing import ClassVar

from surgery.core.errors import is_whole
from surgery.graph import ModelGraph
from surgery.methods.planners.pruning.options import PruningOptions
from surgery.methods.planners.pruning.scored import ScoredPruning
from surgery.methods.planners.pruning.scores import Score, random
from surgery.planning.evidence import Evidence, Kind
from surgery.planning.registry import register


@dataclass(frozen=True)
class RandomConfig(PruningOptions):
    """How much goes, and where (:class:`PruningOptions`).

    Attributes:
        seed: of the lot, a whole number >= 0.
    """

    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not is_whole(self.seed, 0):
            raise ValueError(f"seed={self.seed!r}: a whole number >= 0 is needed")


@register
class RandomChannels(ScoredPruning):
    """See the module."""

    name: ClassVar[str] = "random"
    Config: ClassVar[type] = RandomConfig
    evidence: ClassVar[Kind] = "none"
    changes: ClassVar[str] = "layers lose channels by lot"
    where: ClassVar[str] = "any coupled channels but the model's outputs"

    def score(self, graph: ModelGraph, config: RandomConfig, evidence: Evidence) -> Score:
        return functools.partial(random, seed=config.seed)
