"""The state of an interrupted training: whole, or the one before."""

import errno
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from surgery.core.atomic_file import write_atomically
from surgery.training.json_file import damaged, read_json
from surgery.training.main_process import in_all, on_main
from surgery.training.recipe import RecipeError

POINTER_KEYS = ("folder", "settings", "progress")
UNREADABLE = (OSError, ValueError, RuntimeError, TypeError, KeyError, EOFError, UnpicklingError, SafetensorError)


def _unwritten(target: Path, error: Exception) -> Exception:
    """One line for what Python, safetensors and torch say of a full disk; any other error as it is."""
    if isinstance(error, OSError):
        reason = error.strerror or str(error)
    elif isinstance(error, SafetensorError):
        reason = str(error)
    elif "inline_container" in str(error) or "PytorchStreamWriter" in str(error):  # torch.save says no more than where
        reason = "the disk is full, or a file would be larger than is permitted"
    else:
        return error
    number = getattr(error, "errno", None) or errno.EIO
    return OSError(number, f"cannot write the state {str(target)!r}: {reason}; what was there before is still valid")


def _explained(target: Path, write: Callable[[], object]) -> None:
    """Write; what fails is raised as :func:`_unwritten` says it."""
    try:
        write()
    except (OSError, SafetensorError, RuntimeError) as error:
        raise _unwritten(target, error) from error


@dataclass(frozen=True)
class Progress:
    """How far a training is: whole epochs, steps of the next one with the sum of their losses, a row for each epoch."""

    epoch: int = 0
    step: int = 0
    loss: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)


class TrainingState:
    """States of one training under a folder: ``EPOCH-STEP/`` each, and ``state.json``, which names the valid one."""

    def __init__(self, folder: Path, settings: dict[str, Any], keep: int = 1) -> None:
        self.folder, self.settings, self.keep = folder, json.loads(json.dumps(settings)), keep

    @property
    def begun(self) -> bool:
        """Whether something has been learnt."""
        return (self.folder / "state.json").exists()

    def fitting_batch(self, size: int, accumulate: int) -> dict[str, int]:
        """``batch_size`` and ``accumulate`` that an earlier run of the same settings found to fit, else these."""
        path = self.folder / "batch.json"
        fitting = {"batch_size": size, "accumulate": accumulate}
        if not path.exists():
            return fitting
        remembered = read_json(path, ("settings", *fitting))
        return {key: remembered[key] for key in fitting} if remembered["settings"] == self.settings else fitting

    def remember_batch(self, size: int, accumulate: int) -> None:
        """Remember this batch, of which nothing has been learnt yet."""
        self.folder.mkdir(parents=True, exist_ok=True)
        content = {"batch_size": size, "accumulate": accumulate, "settings": self.settings}
        write_atomically(self.folder / "batch.json", json.dumps(content).encode())

    def save(self, accelerator: Accelerator, ema: nn.Module | None, progress: Progress) -> None:
        """Write the state, then point to it, then remove older ones but the last ``keep``.

        Raises:
            OSError: it cannot be written (a full disk, a limit); nothing of it is left, the one before is still valid.
        """
        target = self.folder / f"{progress.epoch:04d}-{progress.step:07d}"
        if self._pointed() == target.name:
            return  # stopped again before anything was learnt
        beside = target.with_name(f".{target.name}.part")
        try:
            # of a job that was killed while it wrote
            on_main(accelerator, lambda: shutil.rmtree(beside, ignore_errors=True))
            in_all(lambda: _explained(target, lambda: accelerator.save_state(str(beside))))
            on_main(accelerator, lambda: _explained(target, lambda: self._put(beside, target, ema, progress)))
        except (OSError, RuntimeError):
            shutil.rmtree(beside, ignore_errors=True)
            raise

    def _pointed(self) -> str | None:
        """The name of the valid state's folder."""
        pointer = self.folder / "state.json"
        return read_json(pointer, POINTER_KEYS)["folder"] if pointer.exists() else None

    def _put(self, written: Path, target: Path, ema: nn.Module | None, progress: Progress) -> None:
        """Add the EMA to what was written, give that its name, point to it, remove what is older."""
        if ema is not None:
            save_file({k: v.contiguous() for k, v in ema.state_dict().items()}, str(written / "ema.safetensors"))
        shutil.rmtree(target, ignore_errors=True)
        written.rename(target)
        content = {"folder": target.name, "settings": self.settings, "progress": asdict(progress)}
        write_atomically(self.folder / "state.json", json.dumps(content, indent=1).encode())
        for part in self.folder.glob(".*.part"):
            shutil.rmtree(part, ignore_errors=True)
        for old in sorted(self.folder.glob("[0-9]*-*/"))[: -self.keep]:
            shutil.rmtree(old)

    def load(self, accelerator: Accelerator, ema: nn.Module | None) -> Progress:
        """Restore the last whole state; the beginning where there is none.

        Raises:
            RecipeError: the state was made with other settings, or is damaged.
        """
        pointer = self.folder / "state.json"
        if not pointer.exists():
            return Progress()
        content = read_json(pointer, POINTER_KEYS)
        if content["settings"] != self.settings:
            different = [key for key, value in self.settings.items() if dict(content["settings"]).get(key) != value]
            raise RecipeError(
                f"{self.folder} holds a training with other settings (different: {', '.join(different)}): "
                "fresh=true starts over, output=FOLDER keeps both"
            )
        source = self.folder / content["folder"]
        try:
            progress = Progress(**content["progress"])
            accelerator.load_state(str(source))
            if ema is not None:
                ema.load_state_dict(load_file(str(source / "ema.safetensors")))
        except torch.OutOfMemoryError:
            raise
        except UNREADABLE as error:
            raise damaged(source, error) from error
        return progress
