"""Training networks that give one label to an image."""

from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from timm.data import Mixup
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchmetrics.classification import MulticlassAccuracy

from surgery.training.block_distillation import BlockDistillationTask
from surgery.training.recipe import TrainSettings
from surgery.training.task import Mixer, watched


@dataclass(frozen=True)
class ImageClassification:
    """Top-1 accuracy among ``classes``."""

    classes: int
    metric: str = "top-1 accuracy"
    distillation: type[BlockDistillationTask] = BlockDistillationTask

    def criterion(self, settings: TrainSettings) -> nn.Module:
        """Cross entropy, smoothed, or of mixed labels."""
        return SoftTargetCrossEntropy() if settings.mixup else LabelSmoothingCrossEntropy(settings.smoothing)

    def mixer(self, settings: TrainSettings) -> Mixer | None:
        """timm's mixup, which needs an even number of images; labels become shares of the classes in any case."""
        if not settings.mixup:
            return None
        mixup: Any = Mixup(mixup_alpha=settings.mixup, num_classes=self.classes)

        def mixed(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
            if len(images) % 2 == 0:
                return mixup(images, labels)
            return images, nn.functional.one_hot(labels, self.classes).float()

        return mixed

    def evaluate(self, accelerator: Accelerator, model: nn.Module, loader: DataLoader) -> float:
        """Top-1 accuracy in percent."""
        metric = MulticlassAccuracy(self.classes, average="micro").to(accelerator.device)
        model.eval()
        with torch.inference_mode():
            for images, labels in watched(loader, accelerator):
                logits, truth = accelerator.gather_for_metrics((model(images.to(accelerator.device)), labels))
                metric.update(logits, truth.to(accelerator.device))
        return 100 * metric.compute().item()
