"""Which kernels run a site: compiled C++ on CPU, Triton on CUDA, else none (the composition of PyTorch operators)."""

import contextlib
import functools
import importlib
import warnings
from collections.abc import Iterator
from types import ModuleType

import torch
from torch import Tensor

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_state = {"kernels": True}


@contextlib.contextmanager
def composition() -> Iterator[None]:
    """Within it every site runs as the composition of plain PyTorch operators; for comparison and debugging."""
    before, _state["kernels"] = _state["kernels"], False
    try:
        yield
    finally:
        _state["kernels"] = before


def has_kernels(x: torch.dtype, weight: torch.dtype) -> bool:
    """Whether kernels take these dtypes together, and are wanted."""
    return (
        _state["kernels"] and x in _DTYPES and weight in _DTYPES and (x == torch.float64) == (weight == torch.float64)
    )


def kernels_for(x: Tensor, weight: Tensor) -> ModuleType | None:
    """The module with kernels for tensors of this device and these dtypes, or None."""
    if x.numel() == 0 or not has_kernels(x.dtype, weight.dtype):
        return None
    return _module(x.device.type)


def register_kernels() -> None:
    """Put the compiled kernel under ``surgery::pix`` itself, where torch's stable C interface allows it."""
    from surgery.methods.pix.ops import cpu

    cpu.library.register()


def backend(device: str = "cpu") -> str:
    """What runs sites on a device: ``compiled (avx512)``, ``triton``, or ``composition`` with the reason."""
    if not _state["kernels"]:
        return "composition (as asked for)"
    if device == "cpu":
        from surgery.methods.pix.ops import cpu

        return f"compiled ({cpu.library.ISA})" if cpu.library.LIBRARY else f"composition ({cpu.library.REASON})"
    return "triton" if _module(device) else "composition"


@functools.cache
def _module(device: str) -> ModuleType | None:
    if device == "cpu":
        from surgery.methods.pix.ops import cpu

        if cpu.library.LIBRARY is not None:
            return cpu
        warnings.warn(
            f"PiX runs without its compiled kernel, slower than it could: {cpu.library.REASON}. "
            "Reinstall surgery where a C++ compiler (g++ 12 or clang 15, or later) is found.",
            stacklevel=2,
        )
        return None
    if device == "cuda" and importlib.util.find_spec("triton") is not None:
        return importlib.import_module("surgery.methods.pix.ops.triton_kernels")
    return None
