"""Put an FBS layer in the place of a convolution, its norm and its activation."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from surgery.core.errors import SurgeryError, check_choice
from surgery.methods.fbs.layer import PLACEMENTS, FBSConv2d
from surgery.transforms.field_checks import channels, module_name
from surgery.transforms.modules_by_name import checked_conv, put, submodule
from surgery.transforms.transform import CALL, Choice, Transform, plain, transform


@dataclass(frozen=True)
class FBSOptions:
    """Options of the layer.

    Attributes:
        density: d, the share of output channels that are kept, in (0, 1].
        placement, l1: see :class:`surgery.methods.fbs.layer.FBSConv2d`.
        schedule: densities of the training before it reaches ``density``, each for an equal share of the epochs; the
            last epoch always has ``density``.
    """

    density: float = 0.5
    placement: str = "output"
    l1: float = 1e-8
    schedule: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.schedule, list | tuple):
            raise TypeError(f"schedule={self.schedule!r}: a list of densities such as [1, 0.8, 0.6] is needed")
        object.__setattr__(self, "schedule", tuple(pythons_number(value) for value in self.schedule))
        for name in ("density", "l1"):
            object.__setattr__(self, name, pythons_number(getattr(self, name)))
        for name, density in (("density", self.density), *(("schedule", value) for value in self.schedule)):
            if isinstance(density, bool) or not isinstance(density, int | float) or not 0 < density <= 1:
                raise ValueError(f"{name}={density!r}: a share of the channels, above 0 and at most 1, is needed")
        check_choice("placement", self.placement, PLACEMENTS)
        if isinstance(self.l1, bool) or not isinstance(self.l1, int | float) or not 0 <= self.l1 < float("inf"):
            raise ValueError(f"l1={self.l1!r}: a number >= 0 is needed")


def pythons_number(value: Any) -> Any:
    """A number of NumPy's as Python's that prints alike (0.6 of a float32 0.6); anything else as it is."""
    if isinstance(value, np.floating):
        return float(str(value))
    return int(value) if isinstance(value, np.integer) else value


@transform("boost_and_suppress", version=2)
@dataclass(frozen=True)
class BoostAndSuppress(Transform):
    """The convolution ``module`` becomes an FBS layer, which takes in what follows it.

    Attributes:
        module: the convolution's qualified name.
        channels: (in, out) of the convolution as it is found.
        norm: name of the BatchNorm2d that alone reads it, "" for none; nn.Identity takes its place.
        act: the same of the activation behind that.
        producer: name of an FBS layer whose output this one alone reads, with nothing between that treats channels
            differently; "" for none.
        non_negative: what the convolution reads is never negative.
        options: of :class:`FBSOptions`; one that is left out has its default.
    """

    module: str
    channels: tuple[int, int]
    norm: str = ""
    act: str = ""
    producer: str = ""
    non_negative: bool = False
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        module_name("module", self.module)
        for name in ("norm", "act", "producer"):
            if getattr(self, name):
                module_name(name, getattr(self, name))
        names = [self.module, *self.removed()]
        if any(
            f"{one}.".startswith(f"{other}.") for i, one in enumerate(names) for j, other in enumerate(names) if i != j
        ):
            raise ValueError(f"module, norm and act are {names!r:.200}: modules of which none holds another are needed")
        if not isinstance(self.non_negative, bool):
            raise ValueError(f"non_negative={self.non_negative!r:.80}: true or false is needed")
        object.__setattr__(self, "channels", channels("channels", self.channels))
        object.__setattr__(self, "options", _checked(self.options))

    def apply(self, model: nn.Module, choice: Choice = None) -> None:
        conv = checked_conv(model, self.module, self.channels)
        norm = submodule(model, self.norm, nn.BatchNorm2d) if self.norm else None
        act = submodule(model, self.act) if self.act else None
        if norm is not None and norm.num_features != conv.out_channels:
            raise SurgeryError(
                f"{self.norm!r} has {norm.num_features} channels; {self.module!r} gives {conv.out_channels}"
            )
        options = {**self.options, "schedule": tuple(self.options["schedule"]), "non_negative": self.non_negative}
        layer = FBSConv2d(conv, norm, act, **options)
        if self.producer:
            layer.link(cast(FBSConv2d, submodule(model, self.producer, FBSConv2d)))
        put(model, self.module, layer)
        for name in self.removed():
            put(model, name, nn.Identity())

    def changed(self) -> tuple[str, ...]:
        return (self.module,)

    def added(self) -> tuple[str, ...]:
        return (self.module,)

    def removed(self) -> tuple[str, ...]:
        return tuple(name for name in (self.norm, self.act) if name)

    def work(self, model: nn.Module) -> int:
        return 4 * CALL


@transform("boost_and_suppress")
@dataclass(frozen=True)
class WithWholeBias(BoostAndSuppress):
    """The same in files whose ``saliency.bias`` is the whole constant of the saliencies."""

    def apply(self, model: nn.Module, choice: Choice = None) -> None:
        super().apply(model, choice)
        layer: FBSConv2d = submodule(model, self.module, FBSConv2d)
        with torch.no_grad():
            layer.saliency.bias.add_(layer.constant)
        layer.constant = 0.0


def _checked(options: Any) -> dict[str, Any]:
    names = [option.name for option in dataclasses.fields(FBSOptions)]
    if not isinstance(options, dict) or not set(options) <= set(names):
        raise ValueError(f"options={options!r:.120}: there are {', '.join(names)}")
    try:
        return {name: plain(value) for name, value in dataclasses.asdict(FBSOptions(**options)).items()}
    except TypeError as error:
        raise ValueError(str(error)) from error
