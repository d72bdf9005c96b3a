"""What modules of several methods add to a network: by papers' formulas, timed, and with memory measured."""

import contextlib
import dataclasses
import io
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from surgery.bench.report import PICTURES
from surgery.core.errors import check_choice, is_whole
from surgery.core.extras import check_extra
from surgery.core.run_setting import threads_set_to
from surgery.core.table import table
from surgery.core.timing import interleaved
from surgery.planning.overhead import Overhead, Size
from surgery.planning.registry import methods

BYTES = 4  # of a float32
LARGEST, MOST_THREADS = 1 << 20, 1024
HEADER = ("size", "module", "MFLOPs", "published", "memory MB", "published", "measured ms", "peak MB")
NOTES = (
    "MFLOPs and memory: of one module on one map, by the published formulas, and as published, where figures are cut\n"
    "and not rounded; measured: one forward, float32, batch 1, eager, NCHW; peak: held at once beyond input and weights"
)


@dataclass(frozen=True)
class OverheadRow:
    """One module at one size (channels, height, width).

    Attributes:
        mflops: FLOPs in 10⁶; a multiply-accumulate counts once.
        megabytes: written, in 10⁶ bytes of float32.
        published: the same two as a paper prints them; None where it has none.
        milliseconds: median of a forward.
        peak_megabytes: in 10⁶ bytes, at once.
    """

    module: str
    size: Size
    mflops: float
    megabytes: float
    published: tuple[str, float] | None
    milliseconds: float
    peak_megabytes: float


@dataclass(frozen=True)
class OverheadSettings:
    """Options of the command.

    Raises:
        ValueError: naming the option, its value and what would be accepted.
    """

    channels: int = 512
    sides: Sequence[int] = (112, 56, 28)
    threads: int | None = None
    seconds: float = 1.0

    def __post_init__(self) -> None:
        if not is_whole(self.channels, 16) or self.channels > LARGEST:
            raise ValueError(f"--channels {self.channels}: a whole number >= 16, and at most {LARGEST}, is needed")
        if not self.sides or not all(is_whole(side, 1) and side <= LARGEST for side in self.sides):
            raise ValueError(
                f"--sizes {','.join(map(str, self.sides))}: whole numbers >= 1 such as 112,56, and at most {LARGEST}, "
                "are needed"
            )
        if self.threads is not None and not (is_whole(self.threads, 1) and self.threads <= MOST_THREADS):
            raise ValueError(f"--threads {self.threads}: a whole number >= 1, and at most {MOST_THREADS}, is needed")
        if not 0 < self.seconds < math.inf:
            raise ValueError(f"--seconds {self.seconds}: a positive number is needed")


def overheads() -> list[Overhead]:
    """Of all registered methods that have one.

    Raises:
        TypeError: a method's attribute ``overhead`` is something else.
        ValueError: no method has one.
    """
    by_method = {name: method.overhead for name, method in methods().items() if hasattr(method, "overhead")}
    for name, overhead in by_method.items():
        if not isinstance(overhead, Overhead):
            raise TypeError(
                f"method {name!r}: overhead={overhead!r:.80}: a surgery.planning.overhead.Overhead is needed"
            )
    if not by_method:
        raise ValueError(f"overhead needs a method with an attribute 'overhead'; {', '.join(methods())} have none")
    return list(by_method.values())


def measure_overheads(settings: OverheadSettings) -> list[OverheadRow]:
    """A row for every size and module; the modules of a size are timed in turn.

    Raises:
        ValueError: naming the size for which the memory does not suffice.
    """
    with threads_set_to(settings.threads):
        return [row for side in settings.sides for row in _affordable((settings.channels, side, side), settings)]


def _affordable(size: Size, settings: OverheadSettings) -> list[OverheadRow]:
    try:
        return _at(size, settings.seconds)
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, MemoryError) and "memory" not in str(error):
            raise
        raise ValueError(
            f"--sizes {size[1]} with --channels {size[0]}: needs more memory than can be had; less is needed"
        ) from error


def _at(size: Size, seconds: float) -> list[OverheadRow]:
    x = torch.randn(1, *size)
    modules = {overhead.label: overhead.layer(size[0]).eval() for overhead in overheads()}
    steps = {label: _forward(module, x) for label, module in modules.items()}
    timing = interleaved(steps, seconds=seconds * len(steps), label="×".join(map(str, size)))
    return [
        _row(overhead, size, 1e3 * timing.median(overhead.label), peak_bytes(steps[overhead.label]))
        for overhead in overheads()
    ]


def _row(overhead: Overhead, size: Size, milliseconds: float, peak: int) -> OverheadRow:
    cost, published = overhead.cost(*size), overhead.published.get(size)
    megabytes = BYTES * cost.memory / 1e6
    return OverheadRow(overhead.label, size, cost.flops / 1e6, megabytes, published, milliseconds, peak / 1e6)


def _forward(module: nn.Module, x: Tensor) -> Callable[[], Tensor]:
    def forward() -> Tensor:
        with torch.no_grad():
            result: Tensor = module(x)
        return result

    return forward


def peak_bytes(function: Callable[[], object]) -> int:
    """The most that torch's CPU allocator held at once during a call, beyond what it held before.

    The call's result counts. Scratch memory that kernels allocate by themselves is not seen.
    """
    with _silent(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        result = function()
    del result
    profiler: Any = recorded.profiler
    events = [event for event in profiler.kineto_results.events() if event.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """The profiler's library writes to the process's stderr, whatever Python's is."""
    sys.stderr.flush()
    before = os.dup(2)
    try:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)


def overhead_table(rows: Sequence[OverheadRow]) -> str:
    """What the command prints."""
    return f"{table(HEADER, [_cells(row) for row in rows], right=range(2, len(HEADER)))}\n{NOTES}"


def cut(value: float, decimals: int) -> str:
    """A number as the supplement prints it: further digits are cut off."""
    return f"{math.floor(value * 10**decimals + 1e-9) / 10**decimals:.{decimals}f}"


def _cells(row: OverheadRow) -> tuple[str, ...]:
    flops, megabytes = row.published or ("–", None)
    return (
        "×".join(map(str, row.size)),
        row.module,
        cut(row.mflops, 3),
        flops,
        f"{row.megabytes:.6f}",
        "–" if megabytes is None else f"{megabytes:.6f}",
        f"{row.milliseconds:.3f}",
        f"{row.peak_megabytes:.6f}",
    )


def overhead_json(rows: Sequence[OverheadRow]) -> bytes:
    """All rows."""
    return json.dumps([dataclasses.asdict(row) for row in rows], indent=1).encode()


def check_picture(suffix: str) -> None:
    """Raise ValueError for a suffix that no picture has, MissingPackageError where nothing can draw."""
    check_choice("the suffix of --plot", suffix, PICTURES)
    check_extra("train", "a plot", ("matplotlib",))


def drawn_overheads(rows: Sequence[OverheadRow], suffix: str) -> bytes:
    """FLOPs, memory and time of the modules by size, as bars on logarithmic axes (supplement, Fig. 3)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.6), layout="constrained")
    sizes, labels = list(dict.fromkeys(row.size for row in rows)), list(dict.fromkeys(row.module for row in rows))
    parts = (("MFLOPs", "mflops"), ("memory (MB)", "megabytes"), ("measured (ms)", "milliseconds"))
    for axes, (title, name) in zip(figure.subplots(1, 3), parts, strict=True):
        for number, label in enumerate(labels):
            values = [getattr(row, name) for row in rows if row.module == label]
            axes.bar([position + 0.2 * number for position in range(len(sizes))], values, 0.2, label=label)
        axes.set(title=title, yscale="log")
        axes.set_xticks([position + 0.3 for position in range(len(sizes))], ["×".join(map(str, s)) for s in sizes])
    axes.legend(fontsize="small")
    content = io.BytesIO()
    figure.savefig(content, format=suffix.lstrip("."), dpi=120)
    return content.getvalue()
