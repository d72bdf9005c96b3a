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
from surgery.graph.steady_code import TRACERS, is_below, is_standard, is_steady_builtin, is_steady_code, origin
from surgery.graph.trees import own_attributes
from surgery.graph.watched_numbers import UnsteadyError


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
def steady(block: nn.Module, surroundings: Surroundings) -> Iterator[None]:
    """Raise UnsteadyError where what runs in here asks chance, a clock or the machine, or changes what it reads.

    Generators are put back to where they were. Variables outside the block are compared once the ``surroundings`` hold
    them: from the second time on.
    """
    asked: set[str] = set()
    profile = sys.getprofile()
    held = {**_attribute_state(block), **surroundings.state()}
    with generators_kept() as drawn:
        collects = gc.isenabled()
        gc.disable()  # a collection would run finalizers of whatever else there is, and they are not the forward
        sys.setprofile(_watcher(surroundings, asked))
        try:
            yield
        finally:
            sys.setprofile(profile)
            if collects:
                gc.enable()
        asked |= drawn()
    if asked:
        raise UnsteadyError(f"its forward asks {', '.join(sorted(asked))}, which may answer otherwise next time")
    after = {**surroundings.state(), **_attribute_state(block)}
    changed = [name for name in {**after, **held} if name in held or name not in surroundings.state()]
    changed = [name for name in changed if held.get(name) != after.get(name)]
    if changed or surroundings.rebinds():
        raise UnsteadyError(f"its forward changes {', '.join(changed or surroundings.rebinds())}")


def _watcher(surroundings: Surroundings, asked: set[str]) -> Any:
    """A profile function that notes the forward's own code, and what it calls that may answer otherwise next time."""

    def watch(frame: FrameType, event: str, function: Any) -> None:
        if event == "call":
            module = str(frame.f_globals.get("__name__"))
            if is_standard(module) or is_below(module, TRACERS):
                if _is_forward(frame.f_back) and not is_steady_code(module, frame.f_code.co_name):
                    asked.add(f"{module}.{frame.f_code.co_name}")
            else:
                surroundings.add(frame)
        elif event == "c_call" and _is_forward(frame) and not is_steady_builtin(function):
            asked.add(f"{origin(function)}.{getattr(function, '__name__', '')}")

    return watch


def _is_forward(frame: FrameType | None) -> bool:
    """Whether a frame runs for the traced code: not for torch or the tracer, which the standard library serves too."""
    while frame is not None and is_standard(str(frame.f_globals.get("__name__"))):
        frame = frame.f_back
    return frame is not None and not is_below(str(frame.f_globals.get("__name__")), TRACERS)


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
