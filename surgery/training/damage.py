"""What a conversion has cost, and the learning rate that this asks for.

Near a minimum the loss grows with the square of the distance in weights, and the distance that a training covers grows
with its learning rate. So a network that has lost a share d of what the original knows needs √d of the rate at which a
network learns that knows nothing; with more it leaves the minimum that calibration found, and has to learn anew.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor, nn

from surgery.core.eval_mode import eval_mode
from surgery.training.recipe import TrainSettings
from surgery.training.task import Task

IMAGES = 1024  # of the training images, on which losses are compared
LEAST = 0.05  # of the learning rate, however little was lost: a fine-tuning is to move


@dataclass(frozen=True)
class Damage:
    """Mean losses on the same training images: of the original, of the converted network, and of one that guesses."""

    original: float
    converted: float
    guessing: float

    @property
    def share(self) -> float:
        """What is lost of the original's lead over guessing, from 0 to 1; 1 where it has none, as before a training."""
        lead = self.guessing - self.original
        lost = (self.converted - self.original) / lead if lead > 0 else 1.0
        return min(1.0, max(0.0, lost)) if math.isfinite(lost) else 1.0

    @property
    def lr_factor(self) -> float:
        """By which a learning rate is multiplied that suits a network that knows nothing."""
        return max(LEAST, math.sqrt(self.share))

    def __str__(self) -> str:
        return (
            f"the loss on training images went from {self.original:.4f} to {self.converted:.4f} "
            f"({100 * self.share:.1f} % of what guessing would lose)"
        )


@dataclass(frozen=True)
class Judged:
    """A network, and batches of images and labels that its loss is the mean over."""

    network: nn.Module
    batches: Iterable[tuple[Tensor, Tensor]]


def measure_damage(accelerator: Accelerator, task: Task, original: Judged, converted: Judged, classes: int) -> Damage:
    """Both networks' loss on the same training images.

    Args:
        original, converted: each with its batches, read once: a job takes 1,024 images at most, those that calibration
            would take last.
        classes: among which a guess is made; a single output, yes or no, is one of two.
    """
    losses = [_mean_loss(accelerator, judged.network, task, judged.batches) for judged in (original, converted)]
    agreed_losses = torch.tensor(losses, dtype=torch.float32, device=accelerator.device)
    if accelerator.num_processes > 1:
        agreed_losses = cast(Tensor, broadcast(agreed_losses))  # one learning rate for all
    return Damage(agreed_losses[0].item(), agreed_losses[1].item(), math.log(max(2, classes)))


def _mean_loss(
    accelerator: Accelerator, network: nn.Module, task: Task, batches: Iterable[tuple[Tensor, Tensor]]
) -> float:
    """Of plain cross entropy, of a network in eval mode."""
    criterion, total, count = task.criterion(TrainSettings()), 0.0, 0
    network = network.to(accelerator.device)
    with torch.no_grad(), eval_mode(network):
        for images, labels in batches:
            outputs = network(images.to(accelerator.device))
            total += criterion(outputs, labels.to(accelerator.device)).item() * len(images)
            count += len(images)
    return total / count
