"""A pruning as a method's answer: one decision, since widths that share layers can only be changed together."""

from collections.abc import Callable

from torch import nn

from surgery.graph import ModelGraph
from surgery.methods.planners.pruning.options import PruningOptions
from surgery.methods.planners.pruning.pruning import prune_plan
from surgery.methods.planners.pruning.request import PruningRequest
from surgery.methods.planners.pruning.scores import Score
from surgery.planning.decision import Decision, PlanRow
from surgery.planning.registry import Proposal
from surgery.planning.selection import Selection
from surgery.transforms.narrow import Narrow, SameChannels
from surgery.transforms.slicing import Keep, sizes


def plan_pruning(
    graph: ModelGraph,
    selection: Selection,
    options: PruningOptions,
    score: Score,
    recalculate: Callable[[nn.Module], None] | None = None,
) -> Proposal:
    """Decide which channels go, by a score.

    Args:
        selection: of the layers that write channels, by name.
        score, recalculate: as for :func:`prune_plan`.
    """
    result = prune_plan(graph, graph.modules[""], score, PruningRequest.of(options, selection), recalculate)
    rows = tuple(PlanRow(row.name, "channels", (row.before, row.after), row.note, "narrowed") for row in result.rows)
    notes = (result.note,) if result.note else ()
    if not rows:
        return Proposal([], list(result.skipped), notes)
    narrow = narrowing(graph.modules[""], result.keep)
    return Proposal([Decision("widths", (narrow,), rows)], list(result.skipped), notes)


def narrowing(model: nn.Module, keep: Keep) -> Narrow:
    """The transform that leaves the channels ``keep`` of a model, whatever the weights of the model that it meets."""
    left = sizes(model, keep)
    return Narrow(left.widths, left.parameters, SameChannels(keep), left.maps)
