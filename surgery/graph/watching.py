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
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from types import CodeType, FrameType, FunctionType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from surgery.graph.generators import generators_kept
from surgery.graph.trees import own_attributes

# What a forward may call outside its own code: modules whose answers hang on nothing but the arguments. All others may
# read a clock, an environment, the machine or chance.
_STEADY_STANDARD = (
    *("builtins", "math", "cmath", "operator", "_operator", "itertools", "functools", "_functools", "collections"),
    *("_collections", "_collections_abc", "abc", "_abc", "bisect", "_bisect", "heapq", "_heapq", "copy", "copyreg"),
    *("contextlib", "dataclasses", "enum", "types", "typing", "_typing", "numbers", "fractions", "decimal", "_decimal"),
    *("statistics", "_statistics", "re", "_sre", "string", "_string", "inspect", "warnings", "_warnings"),
    "importlib._bootstrap",  # an import of what is imported already
)
_STEADY_TORCH = (
    *("torch.nn", "torch.functional", "torch.special", "torch.linalg", "torch.fft", "torch._VF", "torch._tensor"),
    *("torch._C._nn", "torch._C._linalg", "torch._C._special", "torch._C._fft", "torch._ops", "torch.ops"),
    *("torch.overrides", "torch.fx", "torch.jit", "torch._jit_internal", "torch.compiler", "torch.utils.checkpoint"),
)
_STEADY_OF_TORCH = ("_assert", "is_tensor", "is_floating_point", "is_complex", "sym_int", "sym_max", "sym_min")
_STEADY_NUMPY = ("numpy", "numpy._core", "numpy.core", "numpy.lib")
_STEADY_OBJECTS = (torch.Tensor, torch.Size, torch.dtype, torch.device)
_UNSTEADY_BUILTINS = ("id", "hash", "input")
_TRACERS = ("torch", "torchvision.models.feature_extraction", "surgery.graph")
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
    """Raise UnsteadyError where what runs in here asks chance, a clock or the machine, or changes what it reads.

    Generators are put back to where they were. Variables outside the block are compared once they are ``known``: from
    the second time on.
    """
    asked: set[str] = set()
    profile = sys.getprofile()
    held = {**_attribute_state(block), **known.state()}
    with generators_kept() as drawn:
        collects = gc.isenabled()
        gc.disable()  # a collection would run finalizers of whatever else there is, and they are not the forward
        sys.setprofile(_watcher(known, asked))
        try:
            yield
        finally:
            sys.setprofile(profile)
            if collects:
                gc.enable()
        asked |= drawn()
    if asked:
        raise UnsteadyError(f"its forward asks {', '.join(sorted(asked))}, which may answer otherwise next time")
    after = {**known.state(), **_attribute_state(block)}
    changed = [name for name in {**after, **held} if name in held or name not in known.state()]
    changed = [name for name in changed if held.get(name) != after.get(name)]
    if changed or known.rebinds():
        raise UnsteadyError(f"its forward changes {', '.join(changed or known.rebinds())}")


def _watcher(known: Surroundings, asked: set[str]) -> Any:
    """A profile function that notes the forward's own code, and what it calls that may answer otherwise next time."""

    def watch(frame: FrameType, event: str, function: Any) -> None:
        if event == "call":
            module = str(frame.f_globals.get("__name__"))
            if _is_standard(module) or _is_below(module, _TRACERS):
                if _is_forward(frame.f_back) and not _is_steady_code(module, frame.f_code.co_name):
                    asked.add(f"{module}.{frame.f_code.co_name}")
            else:
                known.add(frame)
        elif event == "c_call" and _is_forward(frame) and not _is_steady_builtin(function):
            asked.add(f"{_origin(function)}.{getattr(function, '__name__', '')}")

    return watch


def _is_forward(frame: FrameType | None) -> bool:
    """Whether a frame runs for the traced code: not for torch or the tracer, which the standard library serves too."""
    while frame is not None and _is_standard(str(frame.f_globals.get("__name__"))):
        frame = frame.f_back
    return frame is not None and not _is_below(str(frame.f_globals.get("__name__")), _TRACERS)


def _is_standard(module: str) -> bool:
    return module.partition(".")[0] in sys.stdlib_module_names


def _is_below(module: str, packages: Iterable[str]) -> bool:
    return any(f"{module}.".startswith(f"{package}.") for package in packages)


def _is_steady_code(module: str, name: str) -> bool:
    """Whether a Python function of the standard library, of torch or of the tracer answers alike each time."""
    if module == "torch":
        return name in _STEADY_OF_TORCH
    return module in _STEADY_STANDARD or _is_below(module, (*_STEADY_TORCH, *_TRACERS[1:]))


def _is_steady_builtin(function: Any) -> bool:
    """Whether a function that is not written in Python answers alike each time.

    Operators of torch that draw are known by what they leave: another state of a generator.
    """
    owner, origin = getattr(function, "__self__", None), _origin(function)
    if origin == "torch" and not isinstance(owner, ModuleType):
        return isinstance(owner, _STEADY_OBJECTS) or function.__qualname__.startswith("_VariableFunctions")
    if origin == "builtins":
        return function.__name__ not in _UNSTEADY_BUILTINS or not isinstance(owner, ModuleType)
    numpy = origin in _STEADY_NUMPY or _is_below(origin, _STEADY_NUMPY[1:])
    return isinstance(owner, _STEADY_OBJECTS) or origin in _STEADY_STANDARD or _is_below(origin, _STEADY_TORCH) or numpy


def _origin(function: Any) -> str:
    """The module of a built-in function, or of the class whose method it is."""
    owner = getattr(function, "__self__", None)
    kind = owner if isinstance(owner, type) else type(owner)
    return str(getattr(function, "__module__", None) or kind.__module__)


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
