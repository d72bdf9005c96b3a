"""Training networks that find the salient objects of an image."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, kl_div, logsigmoid
from torch.utils.data import DataLoader
from tqdm import tqdm

from surgery.training.block_distillation import BlockDistillationTask
from surgery.training.image_dataset import ImageDataset
from surgery.training.recipe import TrainSettings
from surgery.training.segmentation_datasets import LabelledImages
from surgery.training.task import Mixer, watched
from surgery.vision.saliency import constant_figures, f_curve, figures, image_scores, max_f, mean_mask
from surgery.vision.saliency_maps import read_mask, saliency_map

PRIOR_SIDE = 224  # pixels of the mean mask that is a control


@dataclass(frozen=True)
class SalientObjectDetection:
    """Largest mean F-measure over thresholds, at the masks' own sizes, and the other usual figures."""

    auxiliary_weight: float = 0.4
    metric: str = "max F"

    @property
    def distillation(self) -> type[BlockDistillationTask]:
        """Maps are compared pixel by pixel."""
        return MapDistillationTask

    def criterion(self, settings: TrainSettings) -> nn.Module:
        """Binary cross entropy of all pixels, of both heads where there are two."""
        return MapLoss(self.auxiliary_weight, settings.smoothing)

    def mixer(self, settings: TrainSettings) -> Mixer | None:
        """None: masks are not mixed."""
        return None

    def evaluate(self, accelerator: Accelerator, model: nn.Module, loader: DataLoader) -> float:
        """Max F in percent, of batches of images with lists of masks, uint8 (H, W) each."""
        return max_f(_scores(accelerator, model, loader, f_curve))

    def figures(self, accelerator: Accelerator, model: nn.Module, loader: DataLoader) -> dict[str, float]:
        """Max F as :meth:`evaluate` gives it, adaptive F, MAE, S, mean and adaptive E: in percent, by name."""
        return figures(_scores(accelerator, model, loader, image_scores)).by_name()

    def controls(self, data: ImageDataset) -> dict[str, dict[str, float]]:
        """Max F and MAE of the training masks' mean as the map of every test image: what the centre alone is worth."""
        prior = mean_mask(_masks(data.train, "mean training mask"), PRIOR_SIDE)
        reached = constant_figures(prior, _masks(data.test, "control")).by_name()
        return {"mean training mask": {name: reached[name] for name in ("max F", "MAE")}}


def _masks(images: Any, title: str) -> Any:
    """Masks of a part, uint8 (H, W), one after the other, with a bar."""
    pairs = cast(LabelledImages, images).pairs
    return (read_mask(mask).numpy() for _, mask in tqdm(pairs, title, leave=False, delay=1, unit="mask"))


def _scores(
    accelerator: Accelerator,
    model: nn.Module,
    loader: DataLoader,
    score: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> np.ndarray:
    """What ``score`` gives for each test image, float64 (images, numbers), of all processes."""
    model.eval()
    rows = []
    with torch.inference_mode():
        for images, masks in watched(loader, accelerator):
            logits = model(images.to(accelerator.device))
            maps = (saliency_map(one, mask.shape) for one, mask in zip(logits, masks, strict=True))
            scores = np.stack([score(one, mask.cpu().numpy()) for one, mask in zip(maps, masks, strict=True)])
            rows.append(_gathered(accelerator, torch.from_numpy(scores)))
    return np.concatenate(rows)


def _gathered(accelerator: Accelerator, scores: Tensor) -> np.ndarray:
    if accelerator.num_processes > 1:  # one process has them already, perhaps on a device without float64
        scores = scores.to(accelerator.device)
    return cast(Tensor, accelerator.gather_for_metrics(scores)).cpu().numpy()


class MapLoss(nn.Module):
    """Mean binary cross entropy of all pixels, computed in float32.

    Reads logits (N, 1, H, W), or a pair of such, the second of which counts ``auxiliary_weight``, and masks (N, H, W),
    float32 from 0 to 1, which ``smoothing`` draws towards one half.
    """

    def __init__(self, auxiliary_weight: float, smoothing: float) -> None:
        super().__init__()
        self.auxiliary_weight, self.smoothing = auxiliary_weight, smoothing

    def forward(self, outputs: Tensor | tuple[Tensor, Tensor], masks: Tensor) -> Tensor:
        target = masks.float() * (1 - self.smoothing) + self.smoothing / 2
        if isinstance(outputs, Tensor):
            return binary_cross_entropy_with_logits(outputs[:, 0].float(), target)
        main, other = (binary_cross_entropy_with_logits(logits[:, 0].float(), target) for logits in outputs)
        return main + self.auxiliary_weight * other


class MapDistillationTask(BlockDistillationTask):
    """The teacher's map, the sigmoid of its logits, is matched at every pixel (Kullback-Leibler divergence)."""

    def logits_loss(self, input: Tensor, target: Tensor) -> dict[str, Tensor]:
        output = self.trainable_module(input)
        task_loss = self.criterion(output, target)
        with torch.no_grad():
            teacher_logits = cast(Tensor, self.teacher(input))
        student_logits = output if isinstance(output, Tensor) else output[0]
        both = (student_logits, teacher_logits)
        student, teacher = (_log_shares(logits.float() / self.temperature) for logits in both)
        kd_loss = kl_div(student, teacher, reduction="sum", log_target=True) * self.temperature**2
        kd_loss = kd_loss / student_logits.numel()
        loss = self.task_loss_weight * task_loss + self.distill_loss_weight * kd_loss
        return {"loss": loss, "output": student_logits, "task_loss": task_loss, "kd_loss": kd_loss}


def _log_shares(logits: Tensor) -> Tensor:
    """Logarithms of what is salient and what is not."""
    return torch.stack([logsigmoid(logits), logsigmoid(-logits)])
