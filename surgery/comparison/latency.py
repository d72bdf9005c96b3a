"""How long the compared networks take, each measured in turn with the original."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn

import surgery
from surgery.core.atomic_file import write_atomically
from surgery.core.run_setting import threads_set_to
from surgery.core.timing import interleaved

Ratio = tuple[float, float, float]


@dataclass(frozen=True)
class LatencySettings:
    """How networks are timed: eager, float32, on the CPU; ``seconds`` for each, 0 for none."""

    batch: int = 1
    threads: int = 1
    seconds: float = 3.0

    def __post_init__(self) -> None:
        for option, number in (("batch", self.batch), ("threads", self.threads)):
            if number < 1:
                raise ValueError(f"--{option} {number}: 1 or more is needed")
        if not 0 <= self.seconds < float("inf"):
            raise ValueError(f"--seconds {self.seconds:g}: 0 or more is needed")


class Latencies:
    """Ratios that are measured once and kept in a file, with how they were measured."""

    def __init__(self, path: Path, settings: LatencySettings) -> None:
        self.path, self.settings = path, settings
        self._ratios: dict[str, Ratio] = self._read()

    def ratio(self, name: str, network: Path, original: Path, sides: tuple[int, int]) -> Ratio | None:
        """Time ÷ the original's and the quartiles of the rounds' ratios; ``sides`` of both networks' images, pixels."""
        if not self.settings.seconds:
            return None
        key = f"{network} {network.stat().st_mtime_ns}"
        if key not in self._ratios:
            self._ratios[key] = self._measured(name, network, original, sides)
            content = {"settings": asdict(self.settings), "ratios": self._ratios}
            write_atomically(self.path, json.dumps(content, indent=1).encode())
        return self._ratios[key]

    def _read(self) -> dict[str, Ratio]:
        content = json.loads(self.path.read_text()) if self.path.exists() else {}
        same = content.get("settings") == asdict(self.settings)
        return {key: tuple(ratio) for key, ratio in content["ratios"].items()} if same else {}

    def _measured(self, name: str, network: Path, original: Path, sides: tuple[int, int]) -> Ratio:
        settings = self.settings
        with threads_set_to(settings.threads), torch.inference_mode():
            functions = {
                "network": _forward(surgery.load(network), settings.batch, sides[0]),
                "original": _forward(surgery.load(original), settings.batch, sides[1]),
            }
            timing = interleaved(functions, seconds=settings.seconds, label=f"time of {name}")
        return timing.ratio("network", "original")


def _forward(network: nn.Module, batch: int, side: int) -> Callable[[], object]:
    images = torch.randn(batch, 3, side, side)
    network.eval()
    return lambda: network(images)
