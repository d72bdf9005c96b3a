"""Pick-or-Mix (PiX): in place of a squeeze 1×1 convolution, or inserted in front of a spatial one.

Modes (PiX supplement A): ``squeeze`` replaces the head of a bottleneck, or the projection of an inverted one;
``downscale`` inserts a narrowing PiX before spatial convolutions; ``prune`` inserts one with zeta = 1 or small.
"""

import importlib
from dataclasses import asdict, dataclass
from types import ModuleType
from typing import ClassVar

from torch import nn

from surgery.core.errors import check_choice
from surgery.graph import ModelGraph
from surgery.methods.pix.layer import PiX, check_fusion
from surgery.methods.planners.insertion import apply_pooled_head, insert_before, plan_insertion
from surgery.methods.planners.removal import plan_removal
from surgery.methods.planners.squeeze import plan_squeeze
from surgery.planning.registry import Proposal, register
from surgery.planning.request import Request
from surgery.transforms.edit import Edit, checked_conv, drop, drop_calls, replace
from surgery.transforms.edit_arguments import ERASURE, NAMES, TRUE, WIDTH, Form

NORM_PLACES = ("none", "before", "after")


@dataclass(frozen=True)
class PiXConfig:
    """The variants that the papers measured; defaults are the published ones.

    Attributes:
        tau, fusion, operator, activation, grouping: see :class:`surgery.methods.pix.PiX`.
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

    def layer_arguments(self) -> dict[str, object]:
        """Keyword arguments of the PiX layer."""
        arguments = asdict(self)
        return arguments | {"input_norm": arguments.pop("norm") == "before"}


@register
class PiXMethod:
    """PiX as a method; see the module."""

    name: ClassVar[str] = "pix"
    default: ClassVar[bool] = True
    modes: ClassVar[tuple[str, ...]] = ("squeeze", "downscale", "prune")
    Config: ClassVar[type] = PiXConfig
    forms: ClassVar[tuple[Form, ...]] = (
        Form({"pool_head": TRUE}),
        Form({"squeezed": WIDTH}, PiXConfig),
        Form({"identity": NAMES, "erase": ERASURE}, PiXConfig),
    )

    def plan(self, graph: ModelGraph, request: Request, config: PiXConfig) -> Proposal:
        if request.mode == "squeeze":
            return plan_squeeze(
                self.name,
                graph,
                request,
                lambda site: asdict(config) | plan_removal(graph, site, keep_norm=config.norm == "after").to_json(),
            )
        return plan_insertion(self.name, graph, request, asdict(config))

    def apply(self, model: nn.Module, edit: Edit) -> None:
        arguments = dict(edit.arguments)
        if arguments.get("pool_head"):
            apply_pooled_head(model)
            return
        # an option that an older file does not name has its default
        names = [name for name in PiXConfig.__dataclass_fields__ if name in arguments]
        config = PiXConfig(**{name: arguments.pop(name) for name in names})
        conv = checked_conv(model, edit)
        if "squeezed" in arguments:
            pix, gain = self._inserted(conv, int(arguments["squeezed"]), config)
            insert_before(model, edit, conv, pix, gain, config.grouping)
            return
        replace(model, edit.site, PiX.from_conv(conv, **config.layer_arguments()))
        drop(model, arguments["identity"])
        if arguments["erase"]:
            drop_calls(model, *arguments["erase"])

    def _inserted(self, conv: nn.Conv2d, width: int, config: PiXConfig) -> tuple[nn.Module, float]:
        """A PiX whose p is 0.5 everywhere, and the factor that undoes it in the convolution that follows."""
        pix = PiX(conv.in_channels, width, **config.layer_arguments())  # type: ignore[arg-type]
        nn.init.zeros_(pix.weight)
        assert pix.bias is not None
        nn.init.zeros_(pix.bias)
        if config.norm == "after":
            return nn.Sequential(pix, nn.BatchNorm2d(width)), 2.0
        return pix, 1.0 if config.fusion == "weighted" else 2.0

    @property
    def operator_benchmark(self) -> ModuleType:
        """What ``bench --op`` times; imported when asked for, since benchmarks stand above methods."""
        return importlib.import_module("surgery.methods.pix.operator_benchmark")
