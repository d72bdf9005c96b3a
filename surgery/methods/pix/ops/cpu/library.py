"""Finds, loads and calls the compiled kernels.

They are plain C functions in a shared library, called through ctypes: no Python or torch headers take part in the
build, so one build serves every Python and every torch, and an upgrade of either breaks nothing. Of torch only its
thread pool is used (``torch_parallel_for``, part of its stable C interface), where it has one to offer.
"""

import ctypes
from pathlib import Path

import torch
from torch import Tensor

from surgery.methods.pix.ops.reference import SiteSpec

_CODES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
_SINGLE = {"max+avg": 0, "avg": 2}  # else 1: an extreme alone
_ISAS = ("avx512", "avx2", "baseline")
_INTERFACE = 1000
FOLDER = Path(__file__).parent


class PixSite(ctypes.Structure):
    """``PixSite`` of site.h, field by field."""

    _fields_ = (
        *(
            (name, ctypes.c_int64)
            for name in ("n", "c", "out", "h", "w", "out_h", "out_w", "stride_h", "stride_w", "threads")
        ),
        *(
            (name, ctypes.c_int32)
            for name in ("nhwc", "strided", "minimum", "weighted", "single", "tanh", "x_type", "weight_type")
        ),
        ("tau", ctypes.c_double),
        ("parallel_for", ctypes.c_void_p),
    )


def describe(
    size: tuple[int, ...], spec: SiteSpec, form: torch.memory_format, x: torch.dtype, weight: torch.dtype
) -> PixSite:
    """Describe a call on x and a weight of these dtypes; ``size`` is (N, C, C_out, H, W) of the site's input."""
    n, channels, subsets, h, w = size
    return PixSite(
        n,
        channels,
        subsets,
        h,
        w,
        -(-h // spec.stride[0]),
        -(-w // spec.stride[1]),
        *spec.stride,
        torch.get_num_threads(),
        # one pixel: both layouts are the same memory, and the vectors run along the channels
        form == torch.channels_last or h * w == 1,
        spec.grouping == "strided",
        spec.operator == "min",
        spec.fusion == "weighted",
        _SINGLE.get(spec.operator, 1),
        spec.activation == "tanh",
        _CODES[x],
        _CODES[weight],
        spec.tau,
        _PARALLEL_FOR,
    )


def call(name: str, site: PixSite, *tensors: Tensor | None) -> None:
    """Call a kernel on tensors' memory; raises RuntimeError for types that it does not take."""
    pointers = [None if t is None else ctypes.c_void_p(t.data_ptr()) for t in tensors]
    if getattr(LIBRARY, name)(ctypes.byref(site), *pointers) != 0:
        raise RuntimeError(f"{name} has no kernel for types {site.x_type} and {site.weight_type}")


def _load() -> tuple[ctypes.CDLL | None, str, str]:
    """The best library for this processor, its instruction set, and where there is none the reason."""
    capability = torch.backends.cpu.get_cpu_capability().lower()
    wanted = _ISAS[_ISAS.index(capability) :] if capability in _ISAS else _ISAS[-1:]
    reason = "none was built when surgery was installed"
    for isa in wanted:
        for path in sorted(FOLDER.glob(f"_pix_{isa}.*")):
            try:
                library = ctypes.CDLL(str(path))
                library.pix_interface.restype = ctypes.c_int64
                if library.pix_interface() == _INTERFACE + ctypes.sizeof(PixSite):
                    return library, isa, ""
                reason = f"{path.name} was built from another version of surgery"
            except (OSError, AttributeError) as error:
                reason = f"{path.name} cannot be loaded: {error}"
    return None, "", reason


def _torch_libraries() -> list[str]:
    return [str(path) for path in sorted((Path(torch.__file__).parent / "lib").glob("libtorch_cpu.*"))]


def _parallel_for() -> int | None:
    """Address of torch's own parallel loop (torch 2.10 or later), or None: the kernels then start threads."""
    for path in _torch_libraries():
        try:
            return ctypes.cast(ctypes.CDLL(path).torch_parallel_for, ctypes.c_void_p).value
        except (OSError, AttributeError):
            continue
    return None


def register() -> bool:
    """Make the forward kernel the CPU kernel of ``surgery::pix``; False where torch (before 2.10) has no way to."""
    return LIBRARY is not None and any(LIBRARY.pix_register(path.encode()) for path in _torch_libraries())


LIBRARY, ISA, REASON = _load()
_PARALLEL_FOR = _parallel_for() if LIBRARY is not None else None
