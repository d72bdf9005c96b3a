"""What a training is for: its loss, how batches are mixed, how a network is judged."""

from collections.abc import Callable, Iterable
from typing import Any, Protocol

from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from surgery.training.block_distillation import BlockDistillationTask
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
