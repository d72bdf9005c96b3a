"""What a method could do at one site by itself, so that methods can be weighed against each other site by site."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from surgery.graph import ModelGraph
from surgery.planning.decision import Decision
from surgery.planning.evidence import Evidence
from surgery.planning.registry import Method
from surgery.planning.rehearsal import rehearse
from surgery.planning.selection import Selection

STRENGTHS = (0.75, 0.5, 0.25)  # shares of a site's channels that stay, where a method can choose


@dataclass(frozen=True)
class Candidate:
    """One change at one site, as it is without any other.

    Attributes:
        method: the name of the method that does it.
        site: qualified name of the layer that it is about.
        decision: it.
        keep: share of the site's channels that stays, where the method chooses it; 1 where it replaces a layer.
        gone: numbers of the channel classes that it removes, where it is a pruning: such candidates of different sites
            are carried out together.
    """

    method: str
    site: str
    decision: Decision
    keep: float = 1.0
    gone: tuple[int, ...] = field(default=(), repr=False)

    @property
    def label(self) -> str:
        """What is done, in a word or two."""
        return self.method if self.keep == 1 else f"{self.method} {self.keep:g}"

    @property
    def changed(self) -> tuple[str, ...]:
        """Names of the modules that change."""
        return tuple(dict.fromkeys(name for change in self.decision.transforms for name in change.changed()))

    @property
    def taken(self) -> frozenset[str]:
        """Names of the modules that it puts in or takes out, which nothing else may change."""
        changes = self.decision.transforms
        return frozenset(name for change in changes for name in (*change.added(), *change.removed()))


def conflict(one: Candidate, other: Candidate) -> bool:
    """Whether two candidates cannot be carried out together."""
    if one.gone and other.gone:
        return one.site == other.site
    return bool(one.taken & {*other.changed, *other.taken} or other.taken & {*one.changed, *one.taken})


def candidates_of(
    method: Method,
    graph: ModelGraph,
    selection: Selection,
    config: Any,
    evidence: Evidence,
    strengths: Sequence[float] = STRENGTHS,
) -> list[Candidate]:
    """What a method could do, site by site.

    A method may define ``candidates(graph, selection, config, evidence, strengths)``; of any other one each decision
    that needs no further one is a candidate.

    Raises:
        ValueError: the method decides on a whole network at once.
    """
    own = getattr(method, "candidates", None)
    if own is not None:
        return cast("list[Candidate]", own(graph, selection, config, evidence, strengths))
    decisions, _ = rehearse(graph, method.plan(graph, selection, config, evidence).decisions)
    return [Candidate(method.name, item.name, item) for item in _independent(decisions)]


def _independent(decisions: Iterable[Decision]) -> list[Decision]:
    return [decision for decision in decisions if decision.rows and not decision.requires]
