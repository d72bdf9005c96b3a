"""Tables, plots and recorded results of benchmarks."""

import io
import os
import platform
import re
from collections.abc import Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path

import torch

from surgery.bench.operators import operator_benchmarks
from surgery.core.atomic_file import write_atomically
from surgery.core.extras import check_extra
from surgery.core.run_setting import Setting, describe
from surgery.core.table import table
from surgery.core.timing import Timing

Row = tuple[str, Setting, Timing]
PICTURES = (".png", ".svg", ".pdf")
PARTS = ("original", "converted", "free")
RATIOS = (("converted", "original"), ("free", "original"), ("converted", "free"))


def network_table(rows: Sequence[Row]) -> str:
    """Milliseconds and ratios with the quartiles of their rounds; – where a network has no such part."""
    parts = [part for part in PARTS if any(part in timing.seconds for *_, timing in rows)]
    ratios = [(a, b) for a, b in RATIOS if a in parts and b in parts]
    head = ("model", "setting", *parts, *(f"{a}/{b}" for a, b in ratios))
    body = [
        (name, describe(setting), *(_time(timing, part) for part in parts), *(_ratio(timing, *pair) for pair in ratios))
        for name, setting, timing in rows
    ]
    return table(head, body, right=range(2, 2 + len(parts)))


def _time(timing: Timing, part: str) -> str:
    return f"{timing.median(part) * 1e3:.1f} ms" if part in timing.seconds else "–"


def _ratio(timing: Timing, part: str, base: str) -> str:
    measured = part in timing.seconds and base in timing.seconds
    return "{:.3f} [{:.3f} {:.3f}]".format(*timing.ratio(part, base)) if measured else "–"


def machine(device: str = "cpu") -> str:
    """The machine, the versions, and what runs the operators of methods that have their own."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("surgery", "torch", "timm"))
    if device.startswith("cuda"):
        where = torch.cuda.get_device_name(device)
    else:
        where = f"{_processor()}, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}"
    system = f"{platform.system()}, Python {platform.python_version()}"
    backends = [benchmark.backend_line(device) for benchmark in operator_benchmarks().values()]
    return "; ".join([where, system, versions, *backends])


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    model_name = re.search(r"model name\s*:\s*(.+)", text)
    return model_name.group(1).strip() if model_name else platform.machine()


def record(path: str | os.PathLike[str], command: str, where: str, results: str) -> None:
    """Write a section of results into a Markdown file, in place of an earlier one of the same command and machine."""
    file = Path(path)
    before = file.read_text() if file.exists() else "# Results\n"
    title = f"## `{command}`\n\nMachine: {where}.\n"
    section = f"{title}Measured {date.today().isoformat()}.\n\n```\n{results}\n```\n"
    if title in before:
        begin = before.index(title)
        end = before.find("\n## ", begin + 1)
        after = before[:begin] + section + (before[end:] if end >= 0 else "")
    else:
        after = f"{before.rstrip()}\n\n{section}"
    write_atomically(file, after.encode())


def drawn(rows: Sequence[Row], suffix: str = ".png") -> bytes:
    """A picture: bars of converted ÷ original with quartiles, and the floors there are (free ÷ original) as marks."""
    check_extra("train", "a plot", ("matplotlib",))
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 1.2 + 0.45 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    labels = [f"{name}: {describe(setting)}" for name, setting, _ in rows]
    ratios = [timing.ratio("converted", "original") for _, _, timing in rows]
    floors = {
        position: timing.ratio("free", "original")[0]
        for position, (_, _, timing) in enumerate(rows)
        if "free" in timing.seconds
    }
    positions = range(len(rows))
    whiskers = [[max(0.0, r - low) for r, low, _ in ratios], [max(0.0, high - r) for r, _, high in ratios]]
    axes.barh(positions, [r for r, _, _ in ratios], xerr=whiskers, color="#4477aa", label="converted ÷ original")
    if floors:
        marks = axes.plot(list(floors.values()), list(floors), "|", color="#cc3311", label="sites for free ÷ original")
        marks[0].set(markersize=16, markeredgewidth=3)
    axes.axvline(1, color="black", linewidth=1)
    axes.set_yticks(list(positions), labels)
    axes.invert_yaxis()
    axes.set_xlabel("time ÷ time of the original (less is faster)")
    figure.legend(loc="outside lower center", ncols=2)
    buffer = io.BytesIO()
    figure.savefig(buffer, format=suffix.lstrip(".") or "png")
    return buffer.getvalue()
