"""The state of an interrupted training: whole, or the one before."""

import json
import shutil
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import nn

from surgery.atomic_file import write_atomically
from surgery.training.recipe import RecipeError


class TrainingState:
    """States of one training under a folder: ``epoch-NNNN/`` each, and ``state.json``, which names the valid one."""

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.folder, self.settings = folder, settings

    def save(self, accelerator: Accelerator, ema: nn.Module | None, epoch: int, history: list[dict[str, Any]]) -> None:
        """Write the state after ``epoch`` epochs, then point to it, then remove older ones."""
        target = self.folder / f"epoch-{epoch:04d}"
        accelerator.save_state(str(target))
        if accelerator.is_main_process:
            if ema is not None:
                save_file({k: v.contiguous() for k, v in ema.state_dict().items()}, str(target / "ema.safetensors"))
            content = {"epoch": epoch, "folder": target.name, "settings": self.settings, "history": history}
            write_atomically(self.folder / "state.json", json.dumps(content, indent=1).encode())
            for old in self.folder.glob("epoch-*"):
                if old != target:
                    shutil.rmtree(old)
        accelerator.wait_for_everyone()

    def load(self, accelerator: Accelerator, ema: nn.Module | None) -> tuple[int, list[dict[str, Any]]]:
        """Restore the last whole state; returns (epochs done, history), (0, []) where there is none.

        Raises:
            RecipeError: the state was made with other settings.
        """
        pointer = self.folder / "state.json"
        if not pointer.exists():
            return 0, []
        content = json.loads(pointer.read_text())
        if content["settings"] != json.loads(json.dumps(self.settings)):
            different = [k for k, v in json.loads(json.dumps(self.settings)).items() if content["settings"].get(k) != v]
            raise RecipeError(
                f"{self.folder} holds a training with other settings (different: {', '.join(different)}): "
                "fresh=true starts over, output=FOLDER keeps both"
            )
        source = self.folder / content["folder"]
        accelerator.load_state(str(source))
        if ema is not None:
            ema.load_state_dict(load_file(str(source / "ema.safetensors")))
        return int(content["epoch"]), content["history"]
