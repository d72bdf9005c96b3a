"""Training networks that label every pixel of an image."""

from dataclasses import dataclass
from typing import cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div
from torch.utils.data import DataLoader

from surgery.training.block_distillation import BlockDistillationTask
from surgery.training.recipe import TrainSettings
from surgery.training.task import Mixer, watched
from surgery.vision.label_maps import UNLABELLED
from surgery.vision.segmentation import WHOLE, View, confusion, mean_iou, segment


@dataclass(frozen=True)
class SemanticSegmentation:
    """Mean IoU of the classes, over whole images or windows of them."""

    auxiliary_weight: float = 0.4
    view: View = WHOLE
    metric: str = "mIoU"

    @property
    def distillation(self) -> type[BlockDistillationTask]:
        """Logits are compared pixel by pixel."""
        return PixelDistillationTask

    def criterion(self, settings: TrainSettings) -> nn.Module:
        """Cross entropy of the labelled pixels, of both heads."""
        return PixelLoss(self.auxiliary_weight, settings.smoothing)

    def mixer(self, settings: TrainSettings) -> Mixer | None:
        """None: label maps are not mixed."""
        return None

    def evaluate(self, accelerator: Accelerator, model: nn.Module, loader: DataLoader) -> float:
        """Mean IoU in percent."""
        model.eval()
        total = torch.zeros((), dtype=torch.int64, device=accelerator.device)
        with torch.inference_mode():
            for images, labels in watched(loader, accelerator):
                probabilities = segment(model, images.to(accelerator.device), self.view)
                counts = confusion(probabilities, labels.to(accelerator.device))
                total = total + cast(Tensor, accelerator.gather_for_metrics(counts[None])).sum(0)
        return mean_iou(total)


class PixelLoss(nn.Module):
    """Mean cross entropy of the labelled pixels; 0 where there is none.

    Reads logits (N, classes, H, W), or a pair of such, the second of which counts ``auxiliary_weight``, and labels
    (N, H, W), int64.
    """

    def __init__(self, auxiliary_weight: float, smoothing: float) -> None:
        super().__init__()
        self.auxiliary_weight, self.smoothing = auxiliary_weight, smoothing

    def forward(self, outputs: Tensor | tuple[Tensor, Tensor], labels: Tensor) -> Tensor:
        if isinstance(outputs, Tensor):
            return self._mean(outputs, labels)
        return self._mean(outputs[0], labels) + self.auxiliary_weight * self._mean(outputs[1], labels)

    def _mean(self, logits: Tensor, labels: Tensor) -> Tensor:
        total = cross_entropy(
            logits.float(), labels, ignore_index=UNLABELLED, label_smoothing=self.smoothing, reduction="sum"
        )
        return total / (labels != UNLABELLED).sum().clamp(min=1)


class PixelDistillationTask(BlockDistillationTask):
    """The teacher's logits are matched at every pixel, labelled or not."""

    def logits_loss(self, input: Tensor, target: Tensor) -> dict[str, Tensor]:
        output = self.trainable_module(input)
        task_loss = self.criterion(output, target)
        with torch.no_grad():
            teacher_logits = self.teacher(input)
        student_logits = output if isinstance(output, Tensor) else output[0]
        t = self.temperature
        shares = [(logits.float() / t).log_softmax(1) for logits in (student_logits, cast(Tensor, teacher_logits))]
        pixels = student_logits.numel() // student_logits.shape[1]
        kd_loss = kl_div(shares[0], shares[1], reduction="sum", log_target=True) * t**2 / pixels
        loss = self.task_loss_weight * task_loss + self.distill_loss_weight * kd_loss
        return {"loss": loss, "output": student_logits, "task_loss": task_loss, "kd_loss": kd_loss}
