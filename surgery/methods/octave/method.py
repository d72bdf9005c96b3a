"""``octave``: a part of the channels of every block lies on a map of half the height and width."""

from dataclasses import dataclass
from typing import ClassVar

from surgery.core.errors import SurgeryError, check_choice
from surgery.graph import ModelGraph, record
from surgery.graph.recorder import record_training
from surgery.methods.octave.regions import Region, RegionFinder
from surgery.methods.octave.scales import POOLINGS, UPSAMPLINGS
from surgery.methods.octave.transform import OctaveRegion, check_alpha
from surgery.planning.decision import Decision, PlanRow
from surgery.planning.evidence import Evidence, Kind
from surgery.planning.registry import Proposal, register
from surgery.planning.rehearsal import rehearsed_model
from surgery.planning.selection import Selection
from surgery.planning.sites import Skipped


@dataclass(frozen=True)
class OctaveConfig:
    """How much lies on the coarse map.

    Attributes:
        alpha: share of the channels, above 0 and below 1.
        pooling: ``average``, or ``max`` as CSNet has it: what makes a map smaller.
        upsampling: ``nearest``, as OctConv has it, or ``bilinear`` as CSNet: what makes it larger.

    Raises:
        ValueError: naming the option, its value and what would be accepted.
    """

    alpha: float = 0.5
    pooling: str = "average"
    upsampling: str = "nearest"

    def __post_init__(self) -> None:
        check_alpha(self.alpha)
        check_choice("pooling", self.pooling, POOLINGS)
        check_choice("upsampling", self.upsampling, UPSAMPLINGS)


@register
class Octave:
    """See the module."""

    name: ClassVar[str] = "octave"
    Config: ClassVar[type] = OctaveConfig
    evidence: ClassVar[Kind] = "none"
    changes: ClassVar[str] = "a share of the channels is computed at half the height and width"
    where: ClassVar[str] = "runs of convolutions, BatchNorms, activations and residual sums, such as a ResNet's stages"

    def plan(self, graph: ModelGraph, selection: Selection, config: OctaveConfig, evidence: Evidence) -> Proposal:
        """One decision a region."""
        finder = RegionFinder(graph, config.alpha)
        skipped = list(finder.skipped)
        selection.check([region.first for region in finder.regions] + [n for r in finder.regions for n in r.convs])
        decisions = []
        for region in finder.regions:
            decision = _decision(graph, region, config)
            if reason := _unwanted(region, selection) or _failure(graph, decision):
                skipped.append(Skipped(region.first, reason))
            else:
                decisions.append(decision)
        return Proposal(decisions, skipped)


def _unwanted(region: Region, selection: Selection) -> str:
    """A region is one decision: it is wanted where one of its convolutions is included and none is excluded."""
    reasons = [selection.unwanted(name) for name in region.convs]
    excluded = next((reason for reason in reasons if "exclude" in reason), "")
    return excluded or ("" if "" in reasons else reasons[0])


def _failure(graph: ModelGraph, decision: Decision) -> str:
    """Why the network does not run with a region on two maps, or gives something else than it did; or ""."""
    try:
        trial = rehearsed_model(graph, [decision])
        changed = record(trial, graph.input_shape)
        if not graph.needs_values:
            record_training(trial, graph.input_shape)
    except SurgeryError as error:
        return f"its forward does not take two maps ({error!s:.200})"
    shapes = [next(iter(reversed(list(one)))).meta["shapes"] for one in (graph, changed)]
    return "" if shapes[0] == shapes[1] else "the network would give something else than it does"


def _decision(graph: ModelGraph, region: Region, config: OctaveConfig) -> Decision:
    change = OctaveRegion(
        region.first,
        region.last,
        tuple(region.convs),
        tuple(region.norms),
        tuple(region.others),
        config.alpha,
        region.channels,
        config.pooling,
        config.upsampling,
    )
    rows = []
    for name in region.convs:
        conv = graph.modules[name]
        channels = (int(conv.in_channels), int(conv.out_channels))  # type: ignore[arg-type]
        rows.append(PlanRow(name, f"{config.alpha:g} of its channels coarse", channels))
    return Decision(region.first, (change,), tuple(rows))
