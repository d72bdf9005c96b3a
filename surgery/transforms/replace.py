"""Put a layer of a registered kind in a convolution's place."""

from dataclasses import dataclass, field
from typing import Any

from torch import nn

from surgery.transforms.field_checks import channels, module_name
from surgery.transforms.layer_kinds import checked_options, layer_kind
from surgery.transforms.modules_by_name import checked_conv, put
from surgery.transforms.transform import CALL, Choice, Transform, transform


@transform("replace")
@dataclass(frozen=True)
class Replace(Transform):
    """A layer made from the convolution ``module``, whose parameters keep their names.

    Attributes:
        module: the convolution's qualified name.
        layer: kind of layer (:mod:`surgery.transforms.layer_kinds`).
        channels: (in, out) of the convolution as it is found.
        options: of that kind; one that is left out has its default.
    """

    module: str
    layer: str
    channels: tuple[int, int]
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        module_name("module", self.module)
        if layer_kind(self.layer).replacing is None:
            raise ValueError(f"layer {self.layer!r} takes no convolution's place")
        object.__setattr__(self, "channels", channels("channels", self.channels))
        object.__setattr__(self, "options", checked_options(self.layer, self.options))

    def apply(self, model: nn.Module, choice: Choice = None) -> None:
        kind = layer_kind(self.layer)
        assert kind.replacing is not None
        conv = checked_conv(model, self.module, self.channels)
        put(model, self.module, kind.replacing(conv, kind.Options(**self.options)))

    def changed(self) -> tuple[str, ...]:
        return (self.module,)

    def added(self) -> tuple[str, ...]:
        return (self.module,)

    def work(self, model: nn.Module) -> int:
        return CALL
