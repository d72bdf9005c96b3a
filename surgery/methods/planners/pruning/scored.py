"""What all pruning methods share: a score is all that they differ in."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from torch import nn

from surgery.graph import ModelGraph
from surgery.methods.planners.pruning.candidates import pruning_candidates
from surgery.methods.planners.pruning.decisions import plan_pruning
from surgery.methods.planners.pruning.scores import Score
from surgery.planning.candidate import Candidate
from surgery.planning.evidence import Evidence
from surgery.planning.registry import Proposal
from surgery.planning.selection import Selection


class ScoredPruning:
    """A pruning method by its score; subclasses are registered, with a Config of :class:`PruningOptions`."""

    name: ClassVar[str]
    candidate_options: ClassVar[dict[str, Any]] = {"keep": 1.0}  # how much goes is then the candidates' to say

    def score(self, graph: ModelGraph, config: Any, evidence: Evidence) -> Score:
        """What channels are worth."""
        raise NotImplementedError

    def recalculate(self, evidence: Evidence) -> Callable[[nn.Module], None] | None:
        """What is done to the network between the steps of an iterative pruning."""
        return None

    def plan(self, graph: ModelGraph, selection: Selection, config: Any, evidence: Evidence) -> Proposal:
        """Which channels go."""
        score = self.score(graph, config, evidence)
        return plan_pruning(graph, selection, config, score, self.recalculate(evidence))

    def candidates(
        self, graph: ModelGraph, selection: Selection, config: Any, evidence: Evidence, strengths: Sequence[float]
    ) -> list[Candidate]:
        """What could be removed of each axis by itself."""
        score = self.score(graph, config, evidence)
        return pruning_candidates(self.name, graph, selection, config, score, strengths)
