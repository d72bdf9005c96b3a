"""Distillation from the original network: its logits, and what its converted blocks give."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.task import LogitDistillationTask
from timm.task.distillation import DistillationTeacher
from timm.utils import unwrap_model
from torch import Tensor, nn

from surgery.mimicry.common_blocks import common_blocks, recorded_outputs
from surgery.mimicry.map_error import share_of_variance
from surgery.training.recipe import TrainSettings


class BlockDistillationTask(LogitDistillationTask):
    """timm's logit distillation, and the mean over ``blocks`` of the squared error of what they give.

    A block's error is taken as a share of the variance of the original's block. No labels are needed for it.

    Args:
        student_model, teacher_model, **options: as for timm's task.
        blocks: names of modules of both networks (:func:`common_blocks`).
        block_weight: of the mean error in the loss.
    """

    def __init__(
        self,
        student_model: nn.Module,
        teacher_model: nn.Module,
        *,
        blocks: Sequence[str],
        block_weight: float,
        **options: Any,
    ) -> None:
        with _configured(student_model):
            super().__init__(student_model, DistillationTeacher(teacher_model, device=options.get("device")), **options)
        self.blocks, self.block_weight = blocks, block_weight

    def forward(self, input: Tensor, target: Tensor) -> dict[str, Tensor]:
        """As timm's; ``block_loss`` is added to what it returns where there are blocks."""
        student, teacher = unwrap_model(self.trainable_module), unwrap_model(self.teacher.model)
        with (
            recorded_outputs(student, self.blocks) as student_outputs,
            recorded_outputs(teacher, self.blocks) as teacher_outputs,
        ):
            result = self.logits_loss(input, target)
        if not self.blocks or not self.block_weight:
            return result
        errors = [share_of_variance(student_outputs[name][0], teacher_outputs[name][0]) for name in self.blocks]
        result["block_loss"] = torch.stack(errors).mean()
        result["loss"] = result["loss"] + self.block_weight * result["block_loss"]
        return result

    def logits_loss(self, input: Tensor, target: Tensor) -> dict[str, Tensor]:
        """timm's loss of labels and logits."""
        return super().forward(input, target)


@contextmanager
def _configured(model: nn.Module) -> Iterator[None]:
    """timm's task asks its network how images are normalised; a network of another library says what the teacher does.

    Both get the same images, so all that matters is that they say the same.
    """
    if hasattr(model, "pretrained_cfg"):
        yield
        return
    model.pretrained_cfg = {"mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD}  # type: ignore[assignment]
    try:
        yield
    finally:
        del model.pretrained_cfg


def distillation_options(settings: TrainSettings, accelerator: Accelerator) -> dict[str, Any]:
    """Arguments of :class:`BlockDistillationTask` that come from a recipe."""
    return {
        "block_weight": settings.block_weight,
        "task_loss_weight": 1 - settings.distill_weight,
        "distill_loss_weight": settings.distill_weight,
        "temperature": settings.temperature,
        "device": accelerator.device,
        "verbose": False,
    }


def distilled_blocks(
    settings: TrainSettings, student: nn.Module, teacher: nn.Module, image_size: Sequence[int], device: torch.device
) -> list[str]:
    """:func:`common_blocks` of networks, moved to ``device``, for images (C, H, W); none where no block is matched.

    Warns where blocks are to be matched and there is none.
    """
    if not settings.block_weight:
        return []
    images = torch.zeros(2, *image_size, device=device)
    blocks = common_blocks(student.to(device), teacher.to(device), images)
    if not blocks:
        warnings.warn(
            f"{type(student).__name__} has no block around a converted layer that gives one map of the shape that the "
            "original's gives: no blocks are distilled, the logits alone are, where they are (distill_weight)",
            stacklevel=2,
        )
    return blocks
