"""What a change of a part saves in one forward, measured on this machine and remembered."""

import hashlib
import json
import os
import platform
import tempfile
from pathlib import Path

import torch
from torch import nn

from surgery.core.atomic_file import write_atomically
from surgery.core.run_setting import FILE_MODES, Setting
from surgery.deploy.engines import timed_in_turn
from surgery.planning.candidate import Candidate
from surgery.sensitivity_analysis.fitted_part import Part

SECONDS = 0.2  # for both forms of a part together, at least seven rounds
FOLDER = "SURGERY_CACHE"  # the environment variable that names the folder of what is remembered


class SavedSeconds:
    """Callable with a part and its changed form: seconds of a forward of the one, less those of the other.

    Times are of parts of the same structure, whatever their weights, so they are remembered in a file, by processor and
    versions, in the folder of the variable SURGERY_CACHE or ~/.cache/surgery.

    Args:
        setting: batch, engine, dtype, threads.
        seconds: of measuring, for each pair.
    """

    def __init__(self, setting: Setting, seconds: float = SECONDS) -> None:
        self.setting, self.seconds = setting, seconds
        self._path = _folder() / f"times-{_machine()}.json"
        self._times = _read(self._path)

    def wants(self, candidate: Candidate) -> bool:
        """Whether a candidate is timed; where each takes an export, of a pruning only one strength is."""
        return self.setting.mode not in FILE_MODES or candidate.keep in (1.0, 0.5)

    def __call__(self, part: Part, changed: nn.Module) -> float:
        key = self._key(part, changed)
        if key not in self._times:
            self._times[key] = self._measure(part, changed)
            _write(self._path, self._times)
        return self._times[key]

    def _key(self, part: Part, changed: nn.Module) -> str:
        structure = f"{self.setting} {part.shape} {_structure(part.module)} {_structure(changed)}"
        return hashlib.blake2b(structure.encode(), digest_size=16).hexdigest()

    def _measure(self, part: Part, changed: nn.Module) -> float:
        x = torch.randn(self.setting.batch, *part.shape)
        with tempfile.TemporaryDirectory() as folder:
            timing = timed_in_turn(
                {"own": part.module, "changed": changed}, x, self.setting, Path(folder), self.seconds
            )
        return timing.median("own") - timing.median("changed")


def _structure(module: nn.Module) -> str:
    """Modules and shapes of a network, without the names that its place in a larger one gives."""
    return f"{module!r} {[tuple(p.shape) for p in module.parameters()]}"


def _folder() -> Path:
    return Path(os.environ.get(FOLDER) or Path.home() / ".cache" / "surgery")


def _machine() -> str:
    """A digest of the processor and of what computes on it."""
    seen = (platform.machine(), platform.processor(), _processor(), os.cpu_count(), torch.__version__)
    return hashlib.blake2b(repr(seen).encode(), digest_size=8).hexdigest()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        return ""
    return "".join(sorted({line for line in lines if line.startswith(("model", "cpu family", "flags"))}))


def _read(path: Path) -> dict[str, float]:
    try:
        held = json.loads(path.read_text())
    except (OSError, ValueError):  # nothing is remembered
        return {}
    return {str(key): float(value) for key, value in held.items()} if isinstance(held, dict) else {}


def _write(path: Path, times: dict[str, float]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(times).encode())
    except OSError:  # a read-only home: it is measured again the next time
        return
