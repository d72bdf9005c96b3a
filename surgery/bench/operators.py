"""Operators of methods that have kernels of their own: what runs them, and how fast they are by themselves."""

from collections.abc import Sequence
from typing import Protocol

from surgery.core.run_setting import Setting
from surgery.planning.registry import method_named, methods


class OperatorBenchmark(Protocol):
    """What a method's attribute ``operator_benchmark`` is, where it has one: a module or an object."""

    def benchmark(self, settings: Sequence[Setting], *, seconds: float) -> str:
        """Time the operator under each setting; a table. ``seconds`` is for each setting and size."""

    def backend_line(self, device: str) -> str:
        """What runs the operator on a device, in words."""


def operator_benchmarks() -> dict[str, OperatorBenchmark]:
    """Those of the registered methods that have one, by the method's name."""
    benchmarks = {name: getattr(method, "operator_benchmark", None) for name, method in methods().items()}
    return {name: benchmark for name, benchmark in benchmarks.items() if benchmark is not None}


def operator_benchmark(name: str) -> OperatorBenchmark:
    """The one of a method; raises ValueError where there is no such method, or it has no operator of its own."""
    method_named(name)
    benchmarks = operator_benchmarks()
    if name not in benchmarks:
        raise ValueError(f"--op: method {name!r} has no operator of its own; those with one: {', '.join(benchmarks)}")
    return benchmarks[name]
