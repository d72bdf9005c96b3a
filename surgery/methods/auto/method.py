"""``auto``: the mixture of methods that keeps most at a budget, found by measuring.

Every site is tried with every method, one at a time (:func:`surgery.sensitivity`); an integer program takes of these
what saves enough and loses least; what the sum promises is corrected by what the whole network costs, for a latency as
it is measured; and the best few mixtures, and what single methods plan (those that are mixed, and those with a class
attribute ``by_budget``), are calibrated and compared on images that nothing was fitted on.
"""

from dataclasses import replace
from typing import Any, ClassVar

from torch import nn

from surgery.core.extras import check_extra
from surgery.graph import ModelGraph
from surgery.methods.auto.config import AutoConfig
from surgery.methods.auto.finalists import Finalist
from surgery.methods.auto.front import check_front
from surgery.methods.auto.search import Search
from surgery.planning.evidence import Evidence, Kind
from surgery.planning.plan import Plan
from surgery.planning.registry import Proposal, method_named, register
from surgery.planning.selection import Selection
from surgery.sensitivity_analysis.measure import default_methods

NEAR = 0.02  # of the budget: how far it may be missed without a word

__all__ = ["Auto", "AutoConfig"]


@register
class Auto:
    """See the module."""

    name: ClassVar[str] = "auto"
    Config: ClassVar[type] = AutoConfig
    evidence: ClassVar[Kind] = "images"
    changes: ClassVar[str] = "the mixture of methods that keeps most at a budget of MACs, parameters or time, measured"
    rehearsal_options: ClassVar[dict[str, Any]] = {"finalists": 1, "file": None, "front": None}
    where: ClassVar[str] = "wherever the methods go that it mixes"

    def plan(self, graph: ModelGraph, selection: Selection, config: AutoConfig, evidence: Evidence) -> Proposal:
        check_extra("calibrate", "method 'auto'")
        config.check_methods()
        if config.front is not None:
            check_front(config.front)
        search = Search(graph, selection, config, evidence)
        ranked = search.best()
        if not ranked:
            names = ", ".join(search.bench.spec.methods)
            return Proposal([], [], (f"nothing that {names} can do saves {config.budget}",))
        first, *others = ranked[0].decisions
        told = replace(first, note=explained(ranked, search))
        return Proposal([told, *others], [], _missed(ranked[0].reached, config))

    def match(self, plan: Plan, model: nn.Module, inside: bool) -> None:
        """Bring channels into the orders that suit the methods that were mixed."""
        for name in plan.config.methods or default_methods():
            reorder = getattr(method_named(name), "match", None)
            if reorder is not None:
                reorder(plan, model, inside)


def _missed(reached: float, config: AutoConfig) -> tuple[str, ...]:
    if abs(reached - config.share) <= NEAR:
        return ()
    return (f"{config.budget}={config.share:g} is not met: {reached:.3f} is the nearest that was reached",)


def explained(ranked: list[Finalist], search: Search) -> str:
    """What was compared, and what the best is made of; printed below the plan."""
    best, *others = ranked
    budget, rows = search.config.budget, [row for decision in best.decisions for row in decision.rows]
    promised = "" if best.predicted is None else f" (predicted {best.predicted:.3f})"
    kind = "measured" if budget == "latency" else "counted"
    lines = [f"{len(rows)} changes leave {best.reached:.3f} of the {budget}, {kind}{promised}; {best}"]
    lines += [f"  instead of {other}, {other.reached:.3f} of the {budget}" for other in others]
    return "\n  ".join(lines)
