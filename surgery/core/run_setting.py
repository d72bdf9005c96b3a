"""One way to run a network or an operator when it is timed."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from surgery.core.errors import check_choice

MODES = ("eager", "optimized", "compile", "cudagraph", "onnxruntime", "openvino")
FILE_MODES = {"onnxruntime": ("float32",), "openvino": ("float32", "bfloat16")}
"""Engines that run an exported file on the CPU, with the dtypes that they compute in."""
_ALIASES = {"onnx": "onnxruntime"}
LAYOUTS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
DTYPES = {name: getattr(torch, name) for name in ("float32", "bfloat16", "float16")}


@dataclass(frozen=True)
class Setting:
    """One way to run a network.

    Attributes:
        mode: ``eager``, ``optimized`` (eager, of a copy that ``optimize_for_inference`` made), ``compile``
            (torch.compile), ``cudagraph`` (a captured eager step), ``onnxruntime`` (or ``onnx``) or ``openvino``: the
            engines of the last two run an exported file.
        dtype: one of ``DTYPES``; OpenVINO takes bfloat16 as a hint, and keeps float32 where it has no kernel.
        threads: of the CPU; None leaves them.
        training: time forward, backward and an SGD step instead of inference.
    """

    batch: int = 1
    mode: str = "eager"
    dtype: str = "float32"
    layout: str = "channels_last"
    threads: int | None = None
    device: str = "cpu"
    training: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "mode", _ALIASES.get(self.mode, self.mode))
        check_choice("mode", self.mode, MODES)
        check_choice("dtype", self.dtype, DTYPES)
        check_choice("layout", self.layout, LAYOUTS)
        if self.batch < 1 or (self.threads is not None and self.threads < 1):
            raise ValueError(f"batch={self.batch} and threads={self.threads}: positive numbers are needed")
        if self.device.startswith("cuda") and not torch.cuda.is_available():
            raise ValueError(f"device={self.device!r}: this machine has no CUDA device")
        if self.mode == "optimized" and self.training:
            raise ValueError("mode='optimized' is for inference: training=False is needed")
        if self.mode == "cudagraph" and not self.device.startswith("cuda"):
            raise ValueError(f"mode='cudagraph' needs device='cuda', not {self.device!r}")
        self._check_file_mode()

    def _check_file_mode(self) -> None:
        dtypes = FILE_MODES.get(self.mode)
        if dtypes is not None and (self.training or self.device != "cpu" or self.dtype not in dtypes):
            step = "training" if self.training else "inference"
            raise ValueError(
                f"mode={self.mode!r} is for inference in {' or '.join(dtypes)} on the CPU, not for {step} in "
                f"{self.dtype} on {self.device!r}"
            )


def describe(setting: Setting) -> str:
    """A setting in a few words."""
    threads = "" if setting.threads is None else f", {setting.threads} thread{'s' * (setting.threads > 1)}"
    step = "training step, " if setting.training else ""
    layout = "" if setting.mode in FILE_MODES else f", {setting.layout}"
    return f"{step}{setting.mode}, {setting.dtype}{layout}, batch {setting.batch}{threads}"


@contextlib.contextmanager
def threads_set_to(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    if count is None or count == before:
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
