"""From measured candidates to the mixture that is best at a budget."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from functools import cached_property
from itertools import chain
from typing import Any

from tqdm import tqdm

from surgery.graph import ModelGraph
from surgery.methods.auto.config import AutoConfig
from surgery.methods.auto.finalists import Finalist, judged, time_share
from surgery.methods.auto.front import front_of, write_front
from surgery.methods.auto.solver import solve
from surgery.methods.auto.weighed import Weighed, weighed
from surgery.methods.planners.pruning.candidates import together
from surgery.planning.candidate import STRENGTHS
from surgery.planning.cost import graph_cost
from surgery.planning.decision import Decision
from surgery.planning.evidence import Evidence
from surgery.planning.plan import Plan
from surgery.planning.registry import configure, method_named
from surgery.planning.registry import methods as registered_methods
from surgery.planning.rehearsal import rehearse, rehearsed_graph
from surgery.planning.selection import Selection
from surgery.sensitivity_analysis.images import split_images
from surgery.sensitivity_analysis.measure import SensitivitySpec, Workbench, with_options

FINE = (*STRENGTHS, *(n / 16 for n in range(15, 1, -1) if n / 16 not in STRENGTHS))
CORRECTIONS = 6  # of what the sum promised by what the whole network costs
CLOSE = {"macs": 0.003, "params": 0.003, "latency": 0.01}
# how a loss is made of the divergence of the logits and the error of the part, by name
WEIGHTS: dict[str, Callable[[Weighed], float]] = {
    "by the error of the part": lambda option: option.error,
    "by both": lambda option: (option.error * option.kl) ** 0.5,
    "by the divergence of the logits": lambda option: option.kl,
}


class Search:
    """One network, its images, and a budget."""

    def __init__(self, graph: ModelGraph, selection: Selection, config: AutoConfig, evidence: Evidence) -> None:
        self.graph, self.selection, self.config = graph, selection, config
        self.model = evidence.model
        assert evidence.batches is not None
        self.fit, self.judge = split_images(evidence.batches, config.count)
        setting = config.setting if config.budget == "latency" else None
        spec = SensitivitySpec(self._methods(), setting=setting, file=config.file)
        self.bench = Workbench(self.model, graph, self.fit, self.judge, spec)

    def _methods(self) -> dict[str, dict]:
        """The methods to mix, prunings with widths that are multiples of what was asked for."""
        names = with_options(tuple(self.config.methods) or None)
        return {name: dict(options) | self._rounding(name) for name, options in names.items()}

    def _rounding(self, name: str) -> dict[str, int]:
        prunes = hasattr(method_named(name), "candidates")
        return {"round_to": self.config.multiple} if prunes and self.config.multiple > 1 else {}

    @cached_property
    def options(self) -> list[Weighed]:
        """All candidates that save something, with what they cost."""
        options = []
        for name in self.bench.spec.methods:
            candidates = self.bench.candidates(name, self.selection, FINE)
            rows = self.bench.measured(name, [c for c in candidates if c.keep == 1 or c.keep in STRENGTHS])
            options += weighed(candidates, rows)
        return [option for option in options if option.saved(self.config.budget) > 0]

    @cached_property
    def total(self) -> float:
        """Of the budget, what the original costs; seconds for a latency."""
        if self.config.budget == "latency":
            return time_share(self.graph, [], self.config.setting)[1]
        return float(self._cost(self.graph))

    def _cost(self, graph: ModelGraph) -> int:
        if self.config.budget == "params":
            return sum(p.numel() for p in graph.modules[""].parameters())
        return graph_cost(graph).macs

    def share(self, decisions: Sequence[Decision]) -> float:
        """What is left of the budget, counted or measured."""
        if self.config.budget == "latency":
            return time_share(self.graph, decisions, self.config.setting)[0]
        return self._cost(rehearsed_graph(self.graph, decisions)) / self.total

    def mixture(self, name: str, loss: Callable[[Weighed], float]) -> Finalist | None:
        """The mixture that loses least at the budget; what it is asked to save is corrected until that is met."""
        budget, target = self.config.budget, self.config.share
        losses, saved = [loss(option) for option in self.options], [option.saved(budget) for option in self.options]
        needed, best = (1 - target) * self.total, None
        for _ in range(CORRECTIONS):
            chosen = solve(self.options, losses, saved, needed)
            if not chosen:
                break
            decisions, _ = rehearse(self.graph, together(self.graph, [option.candidate for option in chosen]))
            predicted = 1 - sum(option.saved(budget) for option in chosen) / self.total
            finalist = Finalist(f"mixed {name}", tuple(decisions), self.share(decisions), predicted)
            if best is None or abs(finalist.reached - target) < abs(best.reached - target):
                best = finalist
            if abs(finalist.reached - target) <= CLOSE[budget]:
                break
            needed = max(0.0, needed + (finalist.reached - target) * self.total)
        return best

    def alone(self, methods: Mapping[str, Mapping[str, Any]]) -> Iterator[Finalist]:
        """What each method plans by itself that takes such a budget, and has what it looks at."""
        budget = self.config.budget
        for name, options in methods.items():
            method = method_named(name)
            takes_budget = budget in (option.name for option in fields(method.Config))
            if not takes_budget or (method.evidence == "labelled images" and self.fit.labels is None):
                continue
            config = configure(method, {**options, budget: self.config.share})
            evidence = Evidence(self.model, self.fit.evidence())
            decisions, _ = rehearse(self.graph, method.plan(self.graph, self.selection, config, evidence).decisions)
            if decisions:
                yield Finalist(f"{name} alone", tuple(decisions), self.share(decisions))

    def _methods_by_budget(self) -> dict[str, dict[str, Any]]:
        """Methods that are not mixed, but are worth comparing; none where the user has named methods."""
        names = [name for name, method in registered_methods().items() if getattr(method, "by_budget", False)]
        return {} if self.config.methods else {name: self._rounding(name) for name in names}

    def finalists(self) -> list[Finalist]:
        """What is different at the budget, as many as are asked for."""
        mixtures = [self.mixture(name, loss) for name, loss in WEIGHTS.items()]
        distinct: dict[tuple, Finalist] = {}
        for finalist in chain(
            self.alone(self.bench.spec.methods),
            (mixture for mixture in mixtures if mixture is not None),
            self.alone(self._methods_by_budget()),
        ):
            method = "" if finalist.predicted is not None else finalist.name  # other channels, though as many
            rows = tuple(row for decision in finalist.decisions for row in decision.rows)
            distinct.setdefault((method, rows), finalist)
            if len(distinct) == self.config.finalists:
                break
        return list(distinct.values())

    def best(self) -> list[Finalist]:
        """The finalists that meet the budget, the best first."""
        finalists = self.finalists()
        if len(finalists) > 1 or self.config.front is not None:
            bar = tqdm(finalists, "comparing mixtures", leave=False)
            finalists = [judged(f, self._plan(f), self.model, self.fit, self.judge) for f in bar]
        nearest = min((abs(f.reached - self.config.share) for f in finalists), default=0.0)
        meeting = [f for f in finalists if f.reached - self.config.share <= max(0.01, nearest)]
        if self.config.front is not None:
            self._draw(finalists)
        return sorted(meeting, key=lambda f: f.seen.kl if f.seen else 0.0)

    def _draw(self, finalists: Sequence[Finalist]) -> None:
        assert self.config.front is not None
        points = front_of(self.options, WEIGHTS["by both"], self.config.budget, self.total)
        reached = [(f.name, f.reached, f.seen.kl) for f in finalists if f.seen]
        write_front(self.config.front, points, reached, self.config.budget)

    def _plan(self, finalist: Finalist) -> Plan:
        return Plan(finalist.decisions, (), self.graph.input_shape, "auto", self.config)
