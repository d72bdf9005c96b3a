"""PiX as a method: in place of a squeeze 1×1 convolution, or inserted in front of a spatial one.

Modes (PiX supplement A): ``squeeze`` replaces the head of a bottleneck, or the projection of an inverted one;
``downscale`` inserts a narrowing PiX before spatial convolutions; ``prune`` inserts one with zeta = 1 or small.
"""

import dataclasses
import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, ClassVar

from torch import nn

from surgery.core.errors import check_choice
from surgery.graph import ModelGraph
from surgery.methods.pix.layer import PiX, check_fusion
from surgery.methods.pix.matching import match_for
from surgery.methods.pix.overhead import OVERHEAD
from surgery.methods.planners.insertion import plan_insertion
from surgery.methods.planners.squeeze import plan_squeeze, squeeze_plan_notes
from surgery.methods.planners.squeeze_options import SqueezeOptions
from surgery.planning.decision import Decision
from surgery.planning.evidence import Evidence, Kind
from surgery.planning.overhead import Overhead
from surgery.planning.plan import Plan
from surgery.planning.registry import Proposal, register
from surgery.planning.selection import Selection
from surgery.planning.sites import Skipped
from surgery.transforms.layer_kinds import Insertion, LayerKind, register_layer

NORM_PLACES = ("none", "before", "after")


@dataclass(frozen=True)
class PiXOptions:
    """The variants that the papers measured; defaults are the published ones.

    Attributes:
        tau, fusion, operator, activation, grouping: see :class:`surgery.methods.pix.layer.PiX`.
        predictor_norm: BatchNorm between predictor and activation (Table 2, E1).
        norm: BatchNorm of the module: ``none``, ``before`` (a new one on the input) or ``after`` (FACS Table 5); in
            squeeze mode ``after`` keeps the norm that followed the replaced convolution.
    """

    tau: float = 0.5
    fusion: str = "threshold"
    operator: str = "max+avg"
    activation: str = "sigmoid"
    predictor_norm: bool = False
    norm: str = "none"
    grouping: str = "contiguous"

    def __post_init__(self) -> None:
        check_fusion(self.fusion, self.operator, self.activation, self.tau, self.grouping)
        check_choice("norm", self.norm, NORM_PLACES)
        if not isinstance(self.predictor_norm, bool):
            raise TypeError(f"predictor_norm={self.predictor_norm!r}: True or False is needed")

    def layer_arguments(self) -> dict[str, Any]:
        """Keyword arguments of the PiX layer."""
        arguments = {field.name: getattr(self, field.name) for field in dataclasses.fields(PiXOptions)}
        return arguments | {"input_norm": arguments.pop("norm") == "before"}


@dataclass(frozen=True)
class PiXConfig(PiXOptions, SqueezeOptions):
    """Where PiX goes (:class:`SqueezeOptions`) and which variant of it (:class:`PiXOptions`)."""

    def __post_init__(self) -> None:
        SqueezeOptions.__post_init__(self)
        PiXOptions.__post_init__(self)

    def layer(self) -> tuple[str, dict[str, Any]]:
        """Kind of layer and its options."""
        return "pix", {field.name: getattr(self, field.name) for field in dataclasses.fields(PiXOptions)}


def _replacing(conv: nn.Conv2d, options: PiXOptions) -> nn.Module:
    return PiX.from_conv(conv, **options.layer_arguments())


def _inserted(channels: int, squeezed: int, options: PiXOptions) -> Insertion:
    """A PiX whose p is 0.5 everywhere, and the factor that undoes it in the convolution that follows."""
    pix = PiX(channels, squeezed, **options.layer_arguments())
    nn.init.zeros_(pix.weight)
    assert pix.bias is not None
    nn.init.zeros_(pix.bias)
    if options.norm == "after":
        return Insertion(nn.Sequential(pix, nn.BatchNorm2d(squeezed)), 2.0, options.grouping)
    return Insertion(pix, 1.0 if options.fusion == "weighted" else 2.0, options.grouping)


register_layer(LayerKind("pix", PiXOptions, _replacing, _inserted))


@register
class PiXMethod:
    """See the module."""

    name: ClassVar[str] = "pix"
    default: ClassVar[bool] = True
    by_site: ClassVar[bool] = True
    Config: ClassVar[type] = PiXConfig
    evidence: ClassVar[Kind] = "none"
    changes: ClassVar[str] = "a squeeze convolution works on the pooled map and picks or mixes its input channels"
    where: ClassVar[str] = "squeeze 1×1 convolutions; before spatial convolutions (modes downscale, prune)"

    overhead: ClassVar[Overhead] = OVERHEAD

    def plan(self, graph: ModelGraph, selection: Selection, config: PiXConfig, evidence: Evidence) -> Proposal:
        if config.mode == "squeeze":
            return plan_squeeze(graph, selection, config, config.layer(), keep_norm=config.norm == "after")
        return plan_insertion(graph, selection, config, config.layer())

    def notes(
        self, graph: ModelGraph, config: PiXConfig, decisions: Sequence[Decision], skipped: Sequence[Skipped]
    ) -> tuple[str, ...]:
        """What a reader should know of the plan."""
        return squeeze_plan_notes(graph, config, config.layer(), decisions, skipped)

    @property
    def operator_benchmark(self) -> ModuleType:
        """What ``bench --op`` times; imported when asked for."""
        return importlib.import_module("surgery.methods.pix.operator_benchmark")

    def match(self, plan: Plan, model: nn.Module, inside: bool) -> None:
        """Bring channels, in place, into an order in which neighbours agree."""
        match_for(plan, model, inside=inside)
