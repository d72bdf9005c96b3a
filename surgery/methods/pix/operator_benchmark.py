"""Time one PiX site by itself: against the memory's bandwidth, and its training step against conv + BN + ReLU."""

import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from surgery.core.run_setting import DTYPES, LAYOUTS, Setting, describe, threads_set_to
from surgery.core.table import table
from surgery.core.timing import Timing, interleaved
from surgery.methods.pix import ops
from surgery.methods.pix.ops.backend import backend

SIZES = ((256, 64, 56), (512, 128, 28), (1024, 256, 14), (2048, 512, 7))  # C, C_out, H = W of ResNet-50's heads
HEADER = ("site", "setting", "copy", "limit", "from memory", "share", "just used", "share", "training / conv+BN+ReLU")


def backend_line(device: str) -> str:
    """What runs the sites on a device, in words."""
    return f"PiX: {backend(torch.device(device).type)}"


def benchmark(settings: Sequence[Setting], *, seconds: float) -> str:
    """A table of ResNet-50's sites: forward against the bandwidth limit, training step against conv + BN + ReLU.

    Args:
        seconds: for each setting and site.
    """
    timed = [(setting, bench_operator(size, setting, seconds=seconds)) for setting in settings for size in SIZES]
    return table(HEADER, [_row(setting, result) for setting, result in timed], right=(2, 3, 4, 5, 6, 7))


@dataclass(frozen=True)
class OperatorResult:
    """One site.

    Attributes:
        bandwidth: bytes per second of a large copy, read and written bytes counted.
        floor: seconds at that bandwidth for the bytes that must move: x and the weights read, y written.
        cold, warm: median seconds of a forward; x comes from memory, or was just used.
        training: of ``conv`` (1×1 convolution, BatchNorm, ReLU) and ``pix``, forward and backward.
    """

    size: tuple[int, int, int]
    bandwidth: float
    floor: float
    cold: float
    warm: float
    training: Timing


def bench_operator(size: tuple[int, int, int], setting: Setting, *, seconds: float = 5.0) -> OperatorResult:
    """Time a site of ``size`` (C, C_out, H = W); of the setting, batch, dtype, layout, threads and device count."""
    channels, out, pixels = size
    dtype, device, form = DTYPES[setting.dtype], setting.device, LAYOUTS[setting.layout]
    with threads_set_to(setting.threads):
        shape = (setting.batch, channels, pixels, pixels)
        cache = 128 << 20  # inputs that together no cache holds, so that each comes from memory again
        count = max(2, -(-cache // (setting.batch * channels * pixels**2 * dtype.itemsize)))
        inputs = [torch.randn(shape, device=device).to(dtype, memory_format=form) for _ in range(count)]
        weight = (torch.randn(out, channels, 1, 1, device=device) / channels**0.5).to(dtype)
        bias = torch.zeros(out, device=device, dtype=dtype)
        moved = (inputs[0].numel() * (channels + out) // channels + weight.numel()) * dtype.itemsize
        with torch.no_grad():
            cold, copying = _forward_from_memory(inputs, weight, bias, setting, seconds / 3)
            warm = interleaved(
                {"pix": lambda: ops.pix(inputs[0], weight, bias)}, seconds=seconds / 3, device=device
            ).median("pix")
        training = _training(inputs[0], weight, bias, setting, seconds / 3)
    return OperatorResult(size, copying, moved / copying, cold, warm, training)


def _row(setting: Setting, result: OperatorResult) -> tuple[str, ...]:
    return (
        "{}→{} at {}²".format(*result.size),
        describe(setting),
        f"{result.bandwidth / 1e9:.1f} GB/s",
        f"{result.floor * 1e3:.3f} ms",
        f"{result.cold * 1e3:.3f} ms",
        f"{result.floor / result.cold:.2f}",
        f"{result.warm * 1e3:.3f} ms",
        f"{result.floor / result.warm:.2f}",
        "{:.3f} [{:.3f} {:.3f}]".format(*result.training.ratio("pix", "conv")),
    )


def _forward_from_memory(
    inputs: list[Tensor], weight: Tensor, bias: Tensor, setting: Setting, seconds: float
) -> tuple[float, float]:
    """Median seconds of a forward whose input is in no cache, and bytes per second of a copy, in turn."""
    source = torch.empty(64 << 20, dtype=torch.float32, device=setting.device).normal_()
    target = torch.empty_like(source)
    turn = itertools.cycle(inputs)
    copies: list[float] = []
    forwards: list[float] = []
    begin = time.perf_counter()
    while len(copies) < 8 or time.perf_counter() - begin < seconds:
        copies.append(_once(lambda: target.copy_(source), setting.device))
        forwards += [_once(lambda: ops.pix(next(turn), weight, bias), setting.device) for _ in inputs]
    bandwidth = 2 * source.numel() * source.element_size() / statistics.median(copies[1:])
    return statistics.median(forwards[len(inputs) :]), bandwidth


def _once(function: Callable[[], object], device: str) -> float:
    if device.startswith("cuda"):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        function()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin


def _training(x: Tensor, weight: Tensor, bias: Tensor, setting: Setting, seconds: float) -> Timing:
    leaf = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    weight, bias = (t.clone().requires_grad_() for t in (weight, bias))
    conv = nn.Conv2d(x.shape[1], len(weight), 1, bias=False)
    block = nn.Sequential(conv, nn.BatchNorm2d(len(weight)), nn.ReLU(inplace=True)).to(x.device, x.dtype)
    block = block.to(memory_format=LAYOUTS[setting.layout])
    grad = torch.randn_like(block(leaf))

    def pix() -> None:
        leaf.grad = None
        ops.pix(leaf, weight, bias)[0].backward(grad)

    def convolution() -> None:
        leaf.grad = None
        block(leaf).backward(grad)

    return interleaved({"conv": convolution, "pix": pix}, seconds=seconds, device=setting.device)
