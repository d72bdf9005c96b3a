"""What the steps of a job share, and its trainings, each of which goes on from its own state."""

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader

import surgery
from surgery.planning.computed_macs import counting_macs
from surgery.training.data_loading import make_loader
from surgery.training.image_dataset import ImageDataset
from surgery.training.job_setup import make_execution
from surgery.training.outcome import History, Outcome
from surgery.training.recipe import Recipe, TrainSettings
from surgery.training.saliency_transform import saliency_preprocessing
from surgery.training.stopping import StopRequests
from surgery.training.task import Task, all_figures
from surgery.training.tracking import Log
from surgery.training.trainer import BatchTooLargeError, train
from surgery.training.training_spec import Execution, TrainingSpec
from surgery.training.training_state import TrainingState
from surgery.vision.preprocessing import Preprocessing

INDECISIVE = ("keep", "save_minutes", "workers")  # a training goes on with others


@dataclass(frozen=True)
class Stage:
    """One training of a job.

    Attributes:
        name: of the state's folder and in log.csv: baseline, finetune, control, with a seed where there are several.
        label: of the progress bar and of messages.
    """

    name: str
    settings: TrainSettings
    seed: int
    label: str
    teacher: nn.Module | None = None
    blocks: Sequence[str] = ()


@dataclass
class Job:
    """What the steps of a job share."""

    recipe: Recipe
    output: Path
    accelerator: Accelerator
    data: ImageDataset
    test: DataLoader
    task: Task
    outcome: Outcome
    log: Log
    stop: StopRequests

    @property
    def execution(self) -> Execution:
        return make_execution(self.recipe)

    @property
    def image_size(self) -> tuple[int, int, int]:
        """(C, H, W) of training images, at which costs are counted."""
        return 3, self.recipe.data.image_size, self.recipe.data.image_size

    @property
    def preprocessing(self) -> Preprocessing:
        """What the job's networks expect of images, and the names of their classes."""
        settings, data = self.recipe.data, self.data
        if settings.saliency:
            return saliency_preprocessing(settings)
        label_maps = {"ignore": settings.ignore, "colours": data.colours} if settings.segments else {}
        return Preprocessing(
            self.image_size,
            settings.mean,
            settings.std,
            settings.crop_pct,
            settings.interpolation,
            data.names,
            **cast(Any, label_maps),
        )

    def say(self, text: str) -> None:
        self.accelerator.print(text)

    def measure(self, stage: str, model: nn.Module) -> None:
        """Figures on the test images, and what the network computes for one of them, on the average."""
        with counting_macs(model) as computed:
            figures = all_figures(self.task, self.accelerator, model.to(self.accelerator.device), self.test)
        counted = surgery.cost(model, self.image_size)
        spent = replace(counted, macs=counted.macs + round(computed.difference))
        self.outcome.add(stage, figures.pop(self.task.metric), spent, figures)

    def train(self, network: nn.Module, stage: Stage) -> tuple[nn.Module, History]:
        """Train, or go on; the state's folder is named after the stage."""
        state = self._state(stage)
        size = stage.settings.batch_size or self.recipe.data.batch_size
        accumulate = stage.settings.accumulate
        while True:
            fitting = state.fitting_batch(size, accumulate)
            settings = replace(stage.settings, **cast(Any, fitting))
            try:
                return self._train(network, replace(stage, settings=settings), state)
            except BatchTooLargeError:
                size, accumulate = fitting["batch_size"] // 2, fitting["accumulate"] * 2
                # a batch that has fitted before is not what is too large; what was learnt with it is kept
                if not self.recipe.find_batch_size or size < 2 or self.accelerator.num_processes > 1 or state.begun:
                    raise
            self.say(f"{stage.label}: too large a batch; going on with {size} images, {accumulate} batches a step")
            state.remember_batch(size, accumulate)
            torch.cuda.empty_cache()  # the error is gone, and with it the activations that it held

    def _train(self, network: nn.Module, stage: Stage, state: TrainingState) -> tuple[nn.Module, History]:
        def reached(trained: nn.Module, history: History) -> None:
            self.log.write(stage.name, history)
            if stage.settings.keep_best and stage.name == "finetune":
                self._keep_best(network, trained, history)

        training_images = make_loader(self.data.train, self.recipe.data, True, stage.settings.batch_size)
        loaders = (training_images, self.test)
        return train(self._spec(stage), network, loaders, state, stop=self.stop, reached=reached)

    def _spec(self, stage: Stage) -> TrainingSpec:
        teacher = stage.teacher
        if teacher is not None:
            layout = self.execution.memory_format
            teacher = copy.deepcopy(teacher).to(memory_format=layout) if stage.settings.distills else None
        return TrainingSpec(
            self.accelerator,
            self.task,
            stage.settings,
            teacher,
            stage.blocks,
            self.execution,
            stage.seed,
            stage.label,
        )

    def _keep_best(self, network: nn.Module, trained: nn.Module, history: History) -> None:
        """Write best.safetensors where the last epoch is the best so far."""
        accuracies = [row["accuracy"] for row in history]
        if accuracies[-1] > max(accuracies[:-1], default=-1.0) and self.accelerator.is_main_process:
            best = copy.deepcopy(network)
            best.load_state_dict(trained.state_dict())
            surgery.save(best, self.output / "best.safetensors", preprocessing=self.preprocessing)

    def _state(self, stage: Stage) -> TrainingState:
        """The state of one training, tied to the settings that decide its outcome."""
        recipe = asdict(self.recipe)
        groups: tuple[str, ...] = ("precision", "sync_bn", "data", "segmentation", "model", "baseline")
        if stage.name != "baseline":
            groups += ("surgery", "mimic", "finetune")
        decisive = {"seed": stage.seed} | {group: _without(recipe[group], INDECISIVE) for group in groups}
        return TrainingState(self.output / "state" / stage.name, decisive, stage.settings.keep)


def _without(settings: Any, keys: Sequence[str]) -> Any:
    if not isinstance(settings, dict):
        return settings
    return {key: value for key, value in settings.items() if key not in keys}
