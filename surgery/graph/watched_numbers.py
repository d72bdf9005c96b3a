"""Numbers that raise where a forward decides by them, and so does what is computed from them."""

import dis
from types import FunctionType
from typing import Any

from torch import nn

from surgery.graph.trees import own_attributes

_OPERATORS = (
    *("add", "radd", "sub", "rsub", "mul", "rmul", "truediv", "rtruediv"),
    *("floordiv", "rfloordiv", "mod", "rmod", "pow", "rpow", "neg", "abs"),
)


class UnsteadyError(Exception):
    """The path of a forward depends on something that may be different the next time."""


def watch_numbers(block: nn.Module) -> None:
    """Let numbers that the path of a forward must not depend on raise UnsteadyError where they are compared.

    These are floats, and ints and bools that a method other than ``__init__`` sets.
    """
    for prefix, module in block.named_modules():
        if type(module).__module__.startswith("torch.nn."):
            continue
        mutable = _set_outside_init(type(module))
        for name, value in own_attributes(module).items():
            vars(module)[name] = _watched(value, f"{prefix}.{name}".strip("."), name in mutable)


def _watched(value: Any, name: str, mutable: bool) -> Any:
    if type(value) in (list, tuple):
        return type(value)(_watched(item, name, mutable) for item in value)
    if type(value) is dict:
        return {key: _watched(item, name, mutable) for key, item in value.items()}
    if type(value) is float:
        return _Float.of(value, name)
    return _Int.of(value, name) if mutable and type(value) in (int, bool) else value


def _set_outside_init(kind: type) -> set[str]:
    """Names of attributes that the methods of a module's class set, but for ``__init__``."""
    names: set[str] = set()
    for base in kind.__mro__:
        if base.__module__.startswith("torch."):
            continue
        for name, function in vars(base).items():
            if isinstance(function, FunctionType) and name != "__init__":
                names |= {step.argval for step in dis.get_instructions(function) if step.opname == "STORE_ATTR"}
    return names


class _Watched:
    """A number that says who it is where it is compared; so do numbers that are computed from it."""

    name = ""

    @classmethod
    def of(cls, value: Any, name: str) -> Any:
        number = cls(value)  # type: ignore[call-arg]
        number.name = name
        return number

    def _refuse(self, *_: object) -> bool:
        raise UnsteadyError(f"its forward decides by the value of {self.name}")

    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __bool__ = _refuse


class _Float(_Watched, float):
    __hash__ = float.__hash__


class _Int(_Watched, int):
    __hash__ = int.__hash__


def _through(kind: type, operator: str) -> Any:
    own = getattr(kind, f"__{operator}__")

    def compute(self: Any, *others: Any) -> Any:
        result = own(self, *others)
        if type(result) is float:
            return _Float.of(result, self.name)
        return _Int.of(result, self.name) if type(result) is int else result

    return compute


for _operator in _OPERATORS:
    setattr(_Float, f"__{_operator}__", _through(float, _operator))
    setattr(_Int, f"__{_operator}__", _through(int, _operator))
