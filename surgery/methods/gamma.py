"""``gamma``: remove the channels whose norms' scales a training has brought down to nothing.

Gao et al., Highly Efficient Salient Object Detection with 100K Parameters (ECCV 2020), supplement 4.1: a fixed
threshold, after dynamic weight decay (``finetune.dynamic_weight_decay``); Liu et al. 2017 with a budget.
"""

import functools
import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from surgery.graph import ModelGraph
from surgery.graph.training_heads import couple_all
from surgery.methods.planners.pruning.gamma import gamma
from surgery.methods.planners.pruning.options import PruningOptions
from surgery.methods.planners.pruning.scored import ScoredPruning
from surgery.methods.planners.pruning.scores import Score
from surgery.planning.evidence import Evidence, Kind
from surgery.planning.registry import Proposal, register
from surgery.planning.selection import Selection

THRESHOLD = 1e-20


@dataclass(frozen=True)
class GammaConfig(PruningOptions):
    """How much goes, and where (:class:`PruningOptions`).

    Attributes:
        rule: channels of all layers are compared.
        normalise: as they are.
        threshold: channels with a smaller |γ| go. Default: 1e-20, as published, unless a share is asked for.
    """

    rule: str = "global"
    normalise: bool = False
    threshold: float | None = None

    def __post_init__(self) -> None:
        threshold = self.threshold
        number = isinstance(threshold, int | float) and not isinstance(threshold, bool)
        if threshold is not None and not (number and 0 < threshold < math.inf):
            raise ValueError(f"threshold={threshold!r}: a size of a norm's scale, above 0, is needed")
        if all(value is None for value in (self.threshold, self.keep, self.macs, self.params)):
            object.__setattr__(self, "threshold", THRESHOLD)
        super().__post_init__()
        if self.threshold is not None:
            for name, default in (("keep", None), ("rule", "global"), ("normalise", False), ("steps", 1)):
                if getattr(self, name) != default:
                    raise ValueError(
                        f"{name}={getattr(self, name)!r}: not with threshold={self.threshold:g}, which decides channel "
                        "by channel"
                    )


@register
class Gamma(ScoredPruning):
    """See the module."""

    name: ClassVar[str] = "gamma"
    Config: ClassVar[type] = GammaConfig
    evidence: ClassVar[Kind] = "weights"
    changes: ClassVar[str] = "layers lose the channels whose norms scale them to nothing"
    where: ClassVar[str] = "any coupled channels behind BatchNorms but the model's outputs"
    untrained_options: ClassVar[dict[str, Any]] = {"threshold": None, "keep": 0.5}

    def score(self, graph: ModelGraph, config: GammaConfig, evidence: Evidence) -> Score:
        return functools.partial(gamma, input_size=graph.input_shape)

    def plan(self, graph: ModelGraph, selection: Selection, config: GammaConfig, evidence: Evidence) -> Proposal:
        """Which channels go; where none does, a note says how far the smallest scale is from the threshold."""
        proposal = super().plan(graph, selection, config, evidence)
        if proposal.decisions or config.threshold is None:
            return proposal
        model = graph.modules[""]
        coupling = couple_all(graph, model)
        scores = gamma(model, coupling, graph.input_shape)[coupling.removable()]
        finite = scores[np.isfinite(scores)]
        if not finite.size:
            return Proposal([], proposal.skipped, ("no channel that may go lies behind a BatchNorm with scales",))
        note = (
            f"no channel has |γ| below threshold={config.threshold:g}: the smallest is {finite.min():.2g}. A training "
            "with dynamic_weight_decay=3 brings some down, a larger threshold takes more"
        )
        return Proposal([], proposal.skipped, (note,))
