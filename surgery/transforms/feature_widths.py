"""What timm's networks say of their own widths, brought up to date after layers were narrowed."""

from dataclasses import dataclass, field
from typing import Any

from torch import nn

from surgery.core.errors import SurgeryError, is_whole
from surgery.transforms.field_checks import LARGEST, width
from surgery.transforms.transform import CALL, PER_INDEX, Choice, Transform, transform

NUMBERS = {  # what each may be the width of
    "num_features": ("features",),
    "embed_dim": ("features",),
    "head_hidden_size": ("pre_logits", "features"),
    "head.in_features": ("features", "pre_logits"),
    "head.num_features": ("pre_logits",),
    "head.hidden_size": ("pre_logits",),
}


@transform("feature_widths")
@dataclass(frozen=True)
class FeatureWidths(Transform):
    """Numbers by which others build on a network: ``reset_classifier``, a decoder that reads ``feature_info``.

    Attributes:
        numbers: attribute of the network or of its head (:data:`NUMBERS`) → what it is then.
        channels: ``num_chs`` of every entry of ``feature_info``; empty where they stay.
    """

    numbers: dict[str, int] = field(default_factory=dict)
    channels: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.numbers, dict) or not set(self.numbers) <= set(NUMBERS):
            raise ValueError(f"numbers={self.numbers!r:.120}: an object of {', '.join(NUMBERS)} is needed")
        if not isinstance(self.channels, list | tuple):
            raise ValueError(f"channels={self.channels!r:.80}: a list of widths is needed")
        object.__setattr__(self, "numbers", {name: width(name, value) for name, value in self.numbers.items()})
        object.__setattr__(self, "channels", tuple(width("channels", value) for value in self.channels))

    def apply(self, model: nn.Module, choice: Choice = None) -> None:
        owners = [(_owner(model, name), name) for name in self.numbers]
        info = feature_info(model)
        if self.channels and (info is None or len(info) != len(self.channels)):
            raise SurgeryError(f"{type(model).__name__} has no feature_info of {len(self.channels)} feature maps")
        for owner, name in owners:
            setattr(owner, name.rpartition(".")[2], self.numbers[name])
        if info is not None and self.channels:
            new = [{**entry, "num_chs": size} for entry, size in zip(info, self.channels, strict=True)]
            setattr(model, "feature_info", new)  # noqa: B010 (nn.Module types every attribute as a module)

    def work(self, model: nn.Module) -> int:
        return CALL + PER_INDEX * len(self.channels)


def feature_info(model: nn.Module) -> list[dict[str, Any]] | None:
    """timm's list of a network's feature maps; None where there is none of that form."""
    info = getattr(model, "feature_info", None)
    listed = isinstance(info, list) and all(isinstance(e, dict) and is_whole(e.get("num_chs"), 1) for e in info)
    return info if listed else None


def number(model: nn.Module, name: str) -> int | None:
    """A number of :data:`NUMBERS` as a network has it; None where it has none, or a layer has it, which is its own."""
    owner, _, attribute = name.rpartition(".")
    module = getattr(model, owner, None) if owner else model
    tells = isinstance(module, nn.Module) and not isinstance(module, nn.Conv2d | nn.Linear)
    value = getattr(module, attribute, None) if tells else None
    return value if is_whole(value, 1, LARGEST) else None


def _owner(model: nn.Module, name: str) -> nn.Module:
    if number(model, name) is None:
        raise SurgeryError(f"{type(model).__name__} has no number {name!r}: not the model this plan is for")
    owner = name.rpartition(".")[0]
    return model.get_submodule(owner)
