"""Put a channel squeeze of a registered kind in front of a spatial convolution."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from surgery.transforms.field_checks import channels, module_name, width
from surgery.transforms.layer_kinds import checked_options, layer_kind
from surgery.transforms.modules_by_name import checked_conv, put
from surgery.transforms.squeezed_conv import SqueezedConv2d
from surgery.transforms.subsets import subset_members
from surgery.transforms.transform import CALL, PER_INDEX, Choice, Transform, transform


@transform("insert_before")
@dataclass(frozen=True)
class InsertBefore(Transform):
    """A layer in front of the convolution ``module``, whose input becomes as narrow.

    The convolution's new filters are the sums of the old ones over each subset, times the layer's gain: what it
    computed before, if the channels of a subset agree and the layer divides by the gain.

    Attributes:
        module: the convolution's qualified name; the layer becomes its ``squeeze``.
        layer: kind of layer (:mod:`surgery.transforms.layer_kinds`).
        channels: (in, out) of the convolution as it is found.
        squeezed: width that the layer leaves.
        options: of that kind; one that is left out has its default.
    """

    module: str
    layer: str
    channels: tuple[int, int]
    squeezed: int
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        module_name("module", self.module)
        if layer_kind(self.layer).inserted is None:
            raise ValueError(f"layer {self.layer!r} cannot be inserted")
        object.__setattr__(self, "channels", channels("channels", self.channels))
        object.__setattr__(self, "squeezed", width("squeezed", self.squeezed))
        object.__setattr__(self, "options", checked_options(self.layer, self.options))

    def apply(self, model: nn.Module, choice: Choice = None) -> None:
        kind = layer_kind(self.layer)
        assert kind.inserted is not None
        conv = checked_conv(model, self.module, self.channels)
        insertion = kind.inserted(conv.in_channels, self.squeezed, kind.Options(**self.options))
        with torch.no_grad():
            summed = _sum_subsets(conv, self.squeezed, insertion.grouping) * insertion.gain
        weight = nn.Parameter(summed, conv.weight.requires_grad)
        insertion.module.to(device=weight.device, dtype=weight.dtype)
        put(model, self.module, SqueezedConv2d.wrap(conv, insertion.module, weight))

    def changed(self) -> tuple[str, ...]:
        return (self.module,)

    def added(self) -> tuple[str, ...]:
        return (f"{self.module}.squeeze",)

    def resized(self) -> tuple[str, ...]:
        return (self.module,)

    def work(self, model: nn.Module) -> int:
        return CALL + PER_INDEX * self.squeezed


def _sum_subsets(conv: nn.Conv2d, squeezed: int, grouping: str) -> Tensor:
    if squeezed == conv.in_channels:
        return conv.weight.clone()
    members = subset_members(conv.in_channels, squeezed, grouping)
    return torch.stack([conv.weight[:, subset].sum(1) for subset in members], 1)
