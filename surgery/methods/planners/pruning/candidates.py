"""What a pruning could do at one axis by itself."""

from collections.abc import Iterator, Sequence

import numpy as np

from surgery.graph import ModelGraph
from surgery.graph.training_heads import couple_all
from surgery.methods.planners.pruning.axes import Axis
from surgery.methods.planners.pruning.decisions import narrowing
from surgery.methods.planners.pruning.options import PruningOptions
from surgery.methods.planners.pruning.pruning import AxisSelection
from surgery.methods.planners.pruning.request import PruningRequest
from surgery.methods.planners.pruning.scores import Score
from surgery.methods.planners.pruning.selection import Limits, Unit, kept_shares, units_of
from surgery.planning.candidate import Candidate
from surgery.planning.decision import Decision, PlanRow
from surgery.planning.selection import Selection


def pruning_candidates(
    method: str,
    graph: ModelGraph,
    selection: Selection,
    options: PruningOptions,
    score: Score,
    strengths: Sequence[float],
) -> list[Candidate]:
    """The removal of the least worthy channels of each axis, one axis at a time, in several strengths.

    Args:
        method: name of the method.
        options: of which ``round_to``, ``least`` and ``least_share`` matter.
        score: what channels are worth; those that are worth infinity stay.
        strengths: shares of an axis's channels that stay.
    """
    model = graph.modules[""]
    coupling = couple_all(graph, model)
    request = PruningRequest.of(options, selection)
    axes = AxisSelection(graph, model, coupling, request).axes
    scores = score(model, coupling)
    limits = Limits(options.least, options.least_share, options.round_to)
    candidates = []
    for position, axis in enumerate(axes):
        units = [u for u in units_of(position, axis, scores, limits.removable(axis)) if u.score < np.inf]
        for share, gone in _by_strength(axis, units, strengths):
            decision = _decision(graph, axis, coupling.kept(gone), len(gone))
            candidates.append(Candidate(method, axis.name, decision, share, tuple(gone.tolist())))
    return candidates


def _by_strength(axis: Axis, units: Sequence[Unit], strengths: Sequence[float]) -> Iterator[tuple[float, np.ndarray]]:
    """Shares that stay, as asked for, with the classes that go; of equal removals the first."""
    done: set[int] = set()
    for share in strengths:
        chosen = kept_shares(axis, units, share)
        if chosen and len(chosen) not in done:
            done.add(len(chosen))
            yield share, np.sort(np.concatenate([unit.classes for unit in chosen]))


def _decision(graph: ModelGraph, axis: Axis, keep: dict, removed: int) -> Decision:
    after = axis.width - removed * axis.channels_each
    row = PlanRow(axis.name, "channels", (axis.width, after), verb="narrowed")
    return Decision(axis.name, (narrowing(graph.modules[""], keep),), (row,))


def together(graph: ModelGraph, chosen: Sequence[Candidate]) -> list[Decision]:
    """Candidates that do not conflict as decisions: all prunings are one narrowing, which comes first."""
    prunings = [candidate for candidate in chosen if candidate.gone]
    others = [candidate.decision for candidate in chosen if not candidate.gone]
    if not prunings:
        return others
    model = graph.modules[""]
    gone = np.unique(np.concatenate([np.array(candidate.gone) for candidate in prunings]))
    keep = couple_all(graph, model).kept(gone)
    rows = tuple(row for candidate in prunings for row in candidate.decision.rows)
    return [Decision("widths", (narrowing(model, keep),), rows), *others]
