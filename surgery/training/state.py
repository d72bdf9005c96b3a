"""The state of an interrupted training: whole, or the one before."""

import json
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import nn

from surgery.atomic_file import write_atomically
from surgery.training.recipe import RecipeError


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
        found = json.loads(path.read_text()) if path.exists() else {}
        if found.pop("settings", None) == self.settings:
            return found
        return {"batch_size": size, "accumulate": accumulate}

    def remember_batch(self, size: int, accumulate: int) -> None:
        """Remember this batch, of which nothing has been learnt yet."""
        self.folder.mkdir(parents=True, exist_ok=True)
        content = {"batch_size": size, "accumulate": accumulate, "settings": self.settings}
        write_atomically(self.folder / "batch.json", json.dumps(content).encode())

    def save(self, accelerator: Accelerator, ema: nn.Module | None, progress: Progress) -> None:
        """Write the state, then point to it, then remove older ones but the last ``keep``."""
        target = self.folder / f"{progress.epoch:04d}-{progress.step:07d}"
        accelerator.save_state(str(target))
        if accelerator.is_main_process:
            if ema is not None:
                save_file({k: v.contiguous() for k, v in ema.state_dict().items()}, str(target / "ema.safetensors"))
            content = {"folder": target.name, "settings": self.settings, "progress": asdict(progress)}
            write_atomically(self.folder / "state.json", json.dumps(content, indent=1).encode())
            for old in sorted(self.folder.glob("*-*/"))[: -self.keep]:
                shutil.rmtree(old)
        accelerator.wait_for_everyone()

    def load(self, accelerator: Accelerator, ema: nn.Module | None) -> Progress:
        """Restore the last whole state; the beginning where there is none.

        Raises:
            RecipeError: the state was made with other settings.
        """
        pointer = self.folder / "state.json"
        if not pointer.exists():
            return Progress()
        content = json.loads(pointer.read_text())
        if content["settings"] != self.settings:
            different = [key for key, value in self.settings.items() if content["settings"].get(key) != value]
            raise RecipeError(
                f"{self.folder} holds a training with other settings (different: {', '.join(different)}): "
                "fresh=true starts over, output=FOLDER keeps both"
            )
        source = self.folder / content["folder"]
        accelerator.load_state(str(source))
        if ema is not None:
            ema.load_state_dict(load_file(str(source / "ema.safetensors")))
        return Progress(**content["progress"])
