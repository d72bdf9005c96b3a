"""What a training is for: its loss, how batches are mixed, how a network is judged."""

from collections.abc import Callable, Iterable
from typing import Any, Protocol, runtime_checkable

from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from surgery.training.block_distillation import BlockDistillationTask
from surgery.training.image_dataset import ImageDataset
from surgery.training.recipe import TrainSettings

Mixer = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def watched(loader: DataLoader, accelerator: Accelerator) -> Iterable[Any]:
    """The batches of a loader, with a bar where somebody sees it."""
    hidden = not accelerator.is_local_main_process
    return tqdm(loader, "evaluating", leave=False, mininterval=0.5, delay=1, unit="batch", disable=hidden)


class Task(Protocol):
    """Images to one label each (:mod:`surgery.training.classification_task`), or to maps of them."""

    @property
    def metric(self) -> str:
        """What :meth:`evaluate` gives, in percent."""

    @property
    def distillation(self) -> type[BlockDistillationTask]:
        """timm's task that trains on labels and on what a teacher gives."""

    def criterion(self, settings: TrainSettings) -> nn.Module:
        """The loss of what a network gives in training mode and of labels."""

    def mixer(self, settings: TrainSettings) -> Mixer | None:
        """What mixes a batch of images and labels, where the settings ask for it."""

    def evaluate(self, accelerator: Accelerator, model: nn.Module, loader: DataLoader) -> float:
        """The metric over a loader of test images, exact on any number of processes."""


@runtime_checkable
class DetailedTask(Task, Protocol):
    """A task with more figures than its metric, too dear for every epoch: they are of each stage of a job."""

    def figures(self, accelerator: Accelerator, model: nn.Module, loader: DataLoader) -> dict[str, float]:
        """The metric, by its name, as :meth:`evaluate` gives it, then what else is reported, in percent."""

    def controls(self, data: ImageDataset) -> dict[str, dict[str, float]]:
        """By name what needs no network, and the figures that it reaches, in percent."""


def all_figures(task: Task, accelerator: Accelerator, model: nn.Module, loader: DataLoader) -> dict[str, float]:
    """By name: the task's metric first, then its further figures, where it has some."""
    if isinstance(task, DetailedTask):
        return task.figures(accelerator, model, loader)
    return {task.metric: task.evaluate(accelerator, model, loader)}
