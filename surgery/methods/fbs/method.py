"""``fbs``: Feature Boosting and Suppression (Gao et al., ICLR 2019), dynamic pruning that really skips channels."""

import bisect
import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from surgery.graph import ModelGraph
from surgery.graph.operation_cost import graph_cost
from surgery.methods.fbs.overhead import OVERHEAD
from surgery.methods.fbs.sites import GatedSite, gated_sites, producers
from surgery.methods.fbs.transform import BoostAndSuppress, FBSOptions, pythons_number
from surgery.planning.decision import Decision, PlanRow
from surgery.planning.evidence import Evidence, Kind
from surgery.planning.overhead import Overhead
from surgery.planning.registry import Proposal, register
from surgery.planning.rehearsal import rehearsed_graph
from surgery.planning.selection import Selection
from surgery.planning.sites import Skipped

LEVELS = 100  # densities that a budget is looked for among
CONSTANT = (
    "placement 'norm_scale': calibration leaves the saliencies as they start, so every image keeps the same channels, "
    "those with the largest scales of their norm, until the network is trained"
)


@dataclass(frozen=True)
class FBSConfig(FBSOptions):
    """How the layers are (:class:`surgery.methods.fbs.transform.FBSOptions`), or how much they may compute.

    Attributes:
        macs: share of the network's multiply-accumulates that is left at most; the density follows from it.
    """

    macs: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "macs", pythons_number(self.macs))
        if self.macs is None:
            return
        if isinstance(self.macs, bool) or not isinstance(self.macs, int | float) or not 0 < self.macs < 1:
            raise ValueError(f"macs={self.macs!r}: a share of the multiply-accumulates, between 0 and 1, is needed")
        if self.density != FBSOptions.density:
            raise ValueError(f"macs={self.macs} and density={self.density}: the density follows from macs; give one")

    def options(self, density: float) -> dict[str, Any]:
        """Options of a layer."""
        named = {option.name: getattr(self, option.name) for option in dataclasses.fields(FBSOptions)}
        return {**named, "density": density}


@register
class FBSMethod:
    """See the module."""

    name: ClassVar[str] = "fbs"
    Config: ClassVar[type] = FBSConfig
    evidence: ClassVar[Kind] = "none"
    changes: ClassVar[str] = "for each image a convolution computes its most salient channels alone, and boosts them"
    where: ClassVar[str] = "convolutions without groups, with the BatchNorm and activation behind them"

    overhead: ClassVar[Overhead] = OVERHEAD

    def plan(self, graph: ModelGraph, selection: Selection, config: FBSConfig, evidence: Evidence) -> Proposal:
        candidates, skipped = gated_sites(graph, changes_filters=config.placement == "norm_scale")
        selection.check([site.name for site in candidates])
        chosen = [site for site in candidates if not selection.unwanted(site.name)]
        skipped += [Skipped(site.name, reason) for site in candidates if (reason := selection.unwanted(site.name))]
        before = producers(graph, chosen)

        def decisions(density: float) -> list[Decision]:
            options = config.options(density)
            return [_decision(site, before.get(site.name, ""), options) for site in chosen]

        if config.macs is None or not chosen:
            return Proposal(decisions(config.density), skipped)
        density = _density_for(config.macs, graph, decisions)
        first, *rest = decisions(density)
        note = f"density {density:g}, for macs={config.macs:g}"
        return Proposal([dataclasses.replace(first, note=note), *rest], skipped)

    def notes(
        self, graph: ModelGraph, config: FBSConfig, decisions: Sequence[Decision], skipped: Sequence[Skipped]
    ) -> tuple[str, ...]:
        """What to try where there is nothing to convert; what a placement asks for."""
        if not decisions:
            return ("no convolution without groups can leave channels out here; to try: another method",)
        return (CONSTANT,) if config.placement == "norm_scale" and config.density < 1 else ()


def _density_for(macs: float, graph: ModelGraph, decisions: Callable[[float], list[Decision]]) -> float:
    """The largest density at which no more than a share of the network's multiply-accumulates is left."""
    total = graph_cost(graph).macs

    def share(level: int) -> float:
        return graph_cost(rehearsed_graph(graph, decisions(level / LEVELS))).macs / total

    level = bisect.bisect_right(range(1, LEVELS + 1), macs, key=share)
    if not level:
        raise ValueError(f"macs={macs:g}: at the least density {1 / LEVELS:g} there are {share(1):.3f} left")
    return level / LEVELS


def _decision(site: GatedSite, producer: str, options: dict[str, Any]) -> Decision:
    change = BoostAndSuppress(site.name, site.channels, site.norm, site.act, producer, site.non_negative, options)
    inside = " + ".join(["conv", *(["norm"] if site.norm else []), *(["activation"] if site.act else [])])
    note = f"reads only what {producer} computed" if producer else ""
    row = PlanRow(site.name, inside, site.channels, note)
    return Decision(site.name, (change,), (row,), (producer,) if producer else ())
