"""What a training is for: its loss, how batches are mixed, how a network is judged."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

from accelerate import Accelerator
from timm.task import TrainingTask
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from surgery.training.recipe import TrainSettings

Mixer = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def watched(loader: DataLoader, accelerator: Accelerator) -> Iterable[Any]:
    """The batches of a loader, with a bar where somebody sees it."""
    hidden = not accelerator.is_local_main_process
    return tqdm(loader, "evaluating", leave=False, mininterval=0.5, delay=1, unit="batch", disable=hidden)


class Task(Protocol):
    """Images to one label each (:class:`~surgery.training.classifying.Classifying`), or to maps of them."""

    @property
    def metric(self) -> str:
        """What :meth:`evaluate` gives, in percent."""

    def objective(self, model: nn.Module, settings: TrainSettings, accelerator: Accelerator) -> TrainingTask:
        """timm's task that trains a network on labels."""

    def distillation(
        self,
        model: nn.Module,
        teacher: nn.Module,
        blocks: Sequence[str],
        settings: TrainSettings,
        accelerator: Accelerator,
    ) -> TrainingTask:
        """timm's task that trains a network on labels and on what the teacher gives."""

    def mixer(self, settings: TrainSettings) -> Mixer | None:
        """What mixes a batch of images and labels, where the settings ask for it."""

    def evaluate(self, accelerator: Accelerator, model: nn.Module, loader: DataLoader) -> float:
        """The metric over a loader of test images, exact on any number of processes."""
