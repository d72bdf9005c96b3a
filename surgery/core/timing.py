"""Time several functions in turn, so that a change of the machine's speed meets all of them."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from tqdm import tqdm

ROUNDS = (7, 400)  # at least, at most


@dataclass(frozen=True)
class Timing:
    """Seconds of each round, by name; the functions of one round ran one after the other."""

    seconds: Mapping[str, list[float]]

    def median(self, name: str) -> float:
        """Median seconds."""
        return statistics.median(self.seconds[name])

    def ratio(self, name: str, base: str) -> tuple[float, float, float]:
        """Ratio of the medians, and the quartiles of the rounds' own ratios."""
        pairs = zip(self.seconds[name], self.seconds[base], strict=True)
        low, _, high = statistics.quantiles([a / b for a, b in pairs], n=4)
        return self.median(name) / self.median(base), low, high


def interleaved(
    functions: Mapping[str, Callable[[], object]], *, seconds: float = 10.0, device: str = "cpu", label: str = ""
) -> Timing:
    """Run the functions in turn until the time is up.

    Args:
        functions: by name; each is called twice first, untimed.
        seconds: for all rounds together; at least 7 rounds are run whatever they take, and at most 400.
        device: ``cuda`` waits for the device around every call.
        label: of the progress bar.
    """
    wait = torch.cuda.synchronize if device.startswith("cuda") else (lambda: None)
    _warm_up(functions, label)
    timings: dict[str, list[float]] = {name: [] for name in functions}
    least, most = ROUNDS
    begin = time.perf_counter()
    with tqdm(
        total=round(seconds), desc=label, unit="s", leave=False, bar_format="{desc} {bar} {n:.0f}/{total}s"
    ) as bar:
        for count in range(1, most + 1):
            for name, function in functions.items():
                timings[name].append(_seconds(function, wait))
            spent = time.perf_counter() - begin
            bar.n = min(spent, seconds)
            bar.refresh()
            if count >= least and spent > seconds:
                break
    return Timing(timings)


def _seconds(function: Callable[[], object], wait: Callable[[], object]) -> float:
    """What one call takes; ``wait`` returns when the device is idle."""
    wait()
    start = time.perf_counter()
    function()
    wait()
    return time.perf_counter() - start


def _warm_up(functions: Mapping[str, Callable[[], object]], label: str) -> None:
    """Call each twice, untimed; the first call may compile, for minutes, and a line says so."""
    with tqdm(bar_format="{desc} [{elapsed}]", leave=False) as bar:
        for name, function in functions.items():
            bar.set_description_str(f"{label}: warming up {name}".lstrip(": "))
            function()
            function()
