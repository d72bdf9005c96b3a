"""What a forward's path depends on, watched while it is traced.

A trace holds the one path that was taken. It stands for the forward only if nothing but shapes and the structure of
the module decides: no random draw, no clock, nothing that the forward itself or another method changes, no float (a
probability or a schedule). What ``__init__`` alone sets to an int, a bool or a string is taken for structure.
"""

import contextlib
import dis
import gc
import pickle
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import CodeType, FrameType, FunctionType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from surgery.graph.generators import generators_kept
from surgery.graph.trees import own_attributes

_CHANCE = ("random", "_random", "secrets", "uuid", "numpy.random", "time", "datetime")
_OPERATORS = (
    *("add", "radd", "sub", "rsub", "mul", "rmul", "truediv", "rtruediv"),
    *("floordiv", "rfloordiv", "mod", "rmod", "pow", "rpow", "neg", "abs"),
)


class UnsteadyError(Exception):
    """The path of a forward depends on something that may be different the next time."""


@dataclass
class Surroundings:
    """Functions that a trace has run, outside torch, and the variables that they read besides their own."""

    codes: set[CodeType] = field(default_factory=set)
    variables: dict[str, Any] = field(default_factory=dict)

    def add(self, frame: FrameType) -> None:
        code = frame.f_code
        if code in self.codes:
            return
        self.codes.add(code)
        enclosing = {name: frame.f_locals[name] for name in code.co_freevars if name in frame.f_locals}
        read = {name: frame.f_globals[name] for name in code.co_names if name in frame.f_globals}
        for name, value in {**read, **enclosing}.items():
            if not callable(value) and not isinstance(value, ModuleType):
                self.variables.setdefault(f"{name} of {frame.f_globals.get('__name__')}", value)

    def state(self) -> dict[str, Any]:
        return {name: _comparable(value) for name, value in self.variables.items()}

    def rebinds(self) -> list[str]:
        """Functions that assign variables of others."""
        steps = ("STORE_GLOBAL", "DELETE_GLOBAL")
        return [
            code.co_name
            for code in self.codes
            if any(step.opname in steps for step in dis.get_instructions(code))
            or any(s.opname == "STORE_DEREF" and s.argval in code.co_freevars for s in dis.get_instructions(code))
        ]


@contextlib.contextmanager
def steady(block: nn.Module, known: Surroundings) -> Iterator[None]:
    """Raise UnsteadyError where what runs in here draws random numbers, reads a clock or changes what it reads.

    Generators are put back to where they were. Variables outside the block are compared once they are ``known``: from
    the second time on.
    """
    chance: set[str] = set()
    profile = sys.getprofile()
    held = {**_attribute_state(block), **known.state()}
    with generators_kept() as drawn:
        collects = gc.isenabled()
        gc.disable()  # a collection would run finalizers of whatever else there is, and they are not the forward
        sys.setprofile(_watcher(known, chance))
        try:
            yield
        finally:
            sys.setprofile(profile)
            if collects:
                gc.enable()
        chance |= drawn()
    if chance:
        raise UnsteadyError(f"its forward asks {', '.join(sorted(chance))}")
    after = {**known.state(), **_attribute_state(block)}
    changed = [name for name in {**after, **held} if name in held or name not in known.state()]
    changed = [name for name in changed if held.get(name) != after.get(name)]
    if changed or known.rebinds():
        raise UnsteadyError(f"its forward changes {', '.join(changed or known.rebinds())}")


def _watcher(known: Surroundings, chance: set[str]) -> Any:
    def watch(frame: FrameType, event: str, function: Any) -> None:
        caller = str(frame.f_globals.get("__name__"))
        if caller.startswith("torch.") or caller == __name__:
            return
        if event == "call":
            known.add(frame)
        elif event == "c_call":
            owner = getattr(function, "__self__", None)
            kind = owner if isinstance(owner, type) else type(owner)
            origin = getattr(function, "__module__", None) or kind.__module__
            if any(f"{origin}.".startswith(f"{name}.") for name in _CHANCE):
                chance.add(origin.strip("_"))

    return watch


def _attribute_state(block: nn.Module) -> dict[str, Any]:
    """Comparable values of what modules hold besides modules and tensors, by name."""
    return {
        f"{prefix}.{name}".strip("."): _comparable(value)
        for prefix, module in block.named_modules()
        for name, value in own_attributes(module).items()
        if not name.startswith("_tensor_constant")  # these are fx's own
    }


def _comparable(value: Any) -> Any:
    if isinstance(value, torch.Generator):
        return bytes(value.get_state().tolist())
    if isinstance(value, Tensor | nn.Module | FunctionType):
        return id(value)
    try:
        return pickle.dumps(value)
    except Exception:  # a pickle may fail in any way: such an object can only be told from another
        return id(value)


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
