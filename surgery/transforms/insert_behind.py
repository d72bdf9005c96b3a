"""Put a layer of a registered kind behind a module."""

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from surgery.transforms.field_checks import module_name, width
from surgery.transforms.layer_kinds import checked_options, layer_kind
from surgery.transforms.modules_by_name import put, submodule
from surgery.transforms.transform import CALL, Choice, Transform, transform


class WithLayerBehind(nn.Sequential):
    """``behind(base(x))``; it also takes the state dict of ``base`` alone, under the names that this had before."""

    base: nn.Module
    behind: nn.Module

    def __init__(self, base: nn.Module, behind: nn.Module) -> None:
        super().__init__(OrderedDict(base=base, behind=behind))

    def forward(self, *arguments: Any, **named: Any) -> Tensor:
        """As ``base`` is called."""
        result: Tensor = self.behind(self.base(*arguments, **named))
        return result

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        own = (f"{prefix}base.", f"{prefix}behind.")
        for key in [key for key in state_dict if key.startswith(prefix) and not key.startswith(own)]:
            state_dict[f"{prefix}base.{key.removeprefix(prefix)}"] = state_dict.pop(key)
        super()._load_from_state_dict(state_dict, prefix, *arguments)


@transform("insert_behind")
@dataclass(frozen=True)
class InsertBehind(Transform):
    """A layer behind ``module``, which becomes ``module.base``; the layer is ``module.behind``.

    Attributes:
        module: a module's qualified name, one that gives a map.
        layer: kind of layer (:mod:`surgery.transforms.layer_kinds`).
        channels: of that map.
        options: of that kind; one that is left out has its default.
    """

    module: str
    layer: str
    channels: int
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        module_name("module", self.module)
        if layer_kind(self.layer).behind is None:
            raise ValueError(f"layer {self.layer!r} does not go behind a module")
        object.__setattr__(self, "channels", width("channels", self.channels))
        object.__setattr__(self, "options", checked_options(self.layer, self.options))

    def apply(self, model: nn.Module, choice: Choice = None) -> None:
        kind = layer_kind(self.layer)
        assert kind.behind is not None
        base = submodule(model, self.module)
        like = next((t for t in (*base.parameters(), *model.parameters()) if t.is_floating_point()), torch.empty(0))
        with torch.device(like.device):  # of a file that is loaded it is meta, where nothing takes memory
            behind = kind.behind(self.channels, kind.Options(**self.options))
        behind.to(device=like.device, dtype=like.dtype).train(base.training)
        put(model, self.module, WithLayerBehind(base, behind))

    def changed(self) -> tuple[str, ...]:
        return (self.module,)

    def added(self) -> tuple[str, ...]:
        return (f"{self.module}.behind",)

    def work(self, model: nn.Module) -> int:
        return 4 * CALL
