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

from surgery.core.eval_mode import eval_mode
from surgery.training.recipe import TrainSettings
from surgery.transforms.changed import changed_layers
from surgery.transforms.reorder import check_same_order


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
        errors = [_Share.apply(student_outputs[name][0], teacher_outputs[name][0]) for name in self.blocks]
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


class _Share(torch.autograd.Function):
    """Mean squared error of an output, as a share of its target's variance.

    Maps are big and this is all that is done to them, so each is read as few times as can be, in its own dtype.
    """

    @staticmethod
    def forward(ctx: Any, output: Tensor, target: Tensor) -> Tensor:
        difference = output - target
        weight = 1 / (difference.numel() * target.float().var().clamp(min=1e-12))
        ctx.save_for_backward(difference, weight)
        ctx.dtype = output.dtype
        return torch.linalg.vector_norm(difference, dtype=torch.float32).square() * weight

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        difference, weight = ctx.saved_tensors
        return (difference * (2 * grad * weight).to(difference.dtype)).to(ctx.dtype), None


def common_blocks(student: nn.Module, teacher: nn.Module, images: Tensor) -> list[str]:
    """The smallest modules around each changed layer that give one map, of the same shape in both networks.

    Changed is what the student's history says was replaced, inserted or resized.

    Args:
        images: (N, C, H, W); both networks run once on them, in eval mode.

    Returns:
        Their names; none, with a warning, where all of the feature maps around changed layers have other shapes.

    Raises:
        ValueError: nothing was converted, or the networks have their channels in different orders.
    """
    check_same_order(student, teacher)
    layers = changed_layers(student)
    if not layers:
        raise ValueError(f"{type(student).__name__} has no converted layer, and so no block around one")
    parents = {name: [name.rsplit(".", n)[0] for n in range(1, name.count(".") + 1)] for name in layers}
    teacher_modules = {name for name, _ in teacher.named_modules()}
    shared_parents = sorted({parent for candidates in parents.values() for parent in candidates} & teacher_modules)
    with (
        torch.no_grad(),
        recorded_outputs(student, shared_parents) as student_outputs,
        recorded_outputs(teacher, shared_parents) as teacher_outputs,
    ):
        for network in (student, teacher):
            with eval_mode(network):
                network(images)
    matching = {
        name for name in shared_parents if _shapes(student_outputs[name]) == _shapes(teacher_outputs[name]) != []
    }
    smallest = {
        next((parent for parent in candidates if parent in matching), "") for candidates in parents.values()
    } - {""}
    if not smallest:
        warnings.warn(
            f"{type(student).__name__} has no block around a converted layer that gives one map of the shape that the "
            "original's gives: no blocks are distilled, the logits alone are, where they are (distill_weight)",
            stacklevel=2,
        )
    return sorted(name for name in smallest if not any(name.startswith(f"{other}.") for other in smallest))


def distilled_blocks(
    settings: TrainSettings, student: nn.Module, teacher: nn.Module, image_size: Sequence[int], device: torch.device
) -> list[str]:
    """:func:`common_blocks` of networks, moved to ``device``, for images (C, H, W); none where no block is matched."""
    if not settings.block_weight:
        return []
    images = torch.zeros(2, *image_size, device=device)
    return common_blocks(student.to(device), teacher.to(device), images)


def _shapes(outputs: list[Any]) -> list[torch.Size]:
    """The shape of the only output, or nothing where there are several or others than tensors."""
    return [outputs[0].shape] if len(outputs) == 1 and isinstance(outputs[0], Tensor) else []


@contextmanager
def recorded_outputs(network: nn.Module, names: Sequence[str]) -> Iterator[dict[str, list[Any]]]:
    """What the named modules return while this is entered, call after call."""
    outputs: dict[str, list[Any]] = {name: [] for name in names}
    handles = [
        network.get_submodule(name).register_forward_hook(
            lambda _, args, output, name=name: outputs[name].append(output)
        )
        for name in names
    ]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()
