"""Which code answers alike each time that it is called: no chance, no clock, nothing of the machine."""

import sys
from collections.abc import Iterable
from types import ModuleType
from typing import Any

import torch

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
TRACERS = ("torch", "torchvision.models.feature_extraction", "surgery.graph")


def is_standard(module: str) -> bool:
    return module.partition(".")[0] in sys.stdlib_module_names


def is_below(module: str, packages: Iterable[str]) -> bool:
    return any(f"{module}.".startswith(f"{package}.") for package in packages)


def is_steady_code(module: str, name: str) -> bool:
    """Whether a Python function of the standard library, of torch or of the tracer answers alike each time."""
    if module == "torch":
        return name in _STEADY_OF_TORCH
    return module in _STEADY_STANDARD or is_below(module, (*_STEADY_TORCH, *TRACERS[1:]))


def is_steady_builtin(function: Any) -> bool:
    """Whether a function that is not written in Python answers alike each time.

    Operators of torch that draw are known by what they leave: another state of a generator.
    """
    owner, module = getattr(function, "__self__", None), origin(function)
    if module == "torch" and not isinstance(owner, ModuleType):
        return isinstance(owner, _STEADY_OBJECTS) or function.__qualname__.startswith("_VariableFunctions")
    if module == "builtins":
        return function.__name__ not in _UNSTEADY_BUILTINS or not isinstance(owner, ModuleType)
    numpy = module in _STEADY_NUMPY or is_below(module, _STEADY_NUMPY[1:])
    return isinstance(owner, _STEADY_OBJECTS) or module in _STEADY_STANDARD or is_below(module, _STEADY_TORCH) or numpy


def origin(function: Any) -> str:
    """The module of a built-in function, or of the class whose method it is."""
    owner = getattr(function, "__self__", None)
    kind = owner if isinstance(owner, type) else type(owner)
    return str(getattr(function, "__module__", None) or kind.__module__)
