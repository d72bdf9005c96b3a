"""Put nn.Identity in the place of modules."""

from dataclasses import dataclass

from torch import nn

from surgery.transforms.field_checks import module_names
from surgery.transforms.modules_by_name import put
from surgery.transforms.transform import CALL, Choice, Transform, transform


@transform("drop")
@dataclass(frozen=True)
class Drop(Transform):
    """Modules that go; the parent's forward and its other names stay as they are."""

    modules: tuple[str, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "modules", module_names("modules", self.modules))

    def apply(self, model: nn.Module, choice: Choice = None) -> None:
        for name in self.modules:
            put(model, name, nn.Identity())

    def removed(self) -> tuple[str, ...]:
        return self.modules

    def work(self, model: nn.Module) -> int:
        return CALL * len(self.modules)
