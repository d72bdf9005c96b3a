"""One training: timm's task, optimiser, scheduler, mixup and EMA, driven by Accelerate."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from timm.data import Mixup
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.task import ClassificationTask, TrainingTask
from torch import nn
from torch.utils.data import DataLoader
from torchmetrics.classification import MulticlassAccuracy
from tqdm import tqdm

from surgery.training.block_distillation import BlockDistillationTask
from surgery.training.recipe import TrainSettings
from surgery.training.state import TrainingState


class NonFiniteLossError(RuntimeError):
    """The loss became NaN or infinite; training stopped at that step."""


def evaluate(accelerator: Accelerator, model: nn.Module, loader: DataLoader, classes: int) -> float:
    """Top-1 accuracy in percent, exact on any number of processes."""
    metric = MulticlassAccuracy(classes, average="micro").to(accelerator.device)
    model.eval()
    with torch.inference_mode():
        for images, labels in loader:
            logits, truth = accelerator.gather_for_metrics((model(images.to(accelerator.device)), labels))
            metric.update(logits, truth.to(accelerator.device))
    return 100 * metric.compute().item()


def train(
    accelerator: Accelerator,
    model: nn.Module,
    loaders: tuple[DataLoader, DataLoader],
    classes: int,
    settings: TrainSettings,
    state: TrainingState,
    *,
    teacher: nn.Module | None = None,
    blocks: Sequence[str] = (),
    seed: int = 0,
    label: str = "train",
) -> tuple[nn.Module, list[dict[str, Any]]]:
    """Train ``model`` for the epochs that its state lacks.

    Args:
        teacher: gives the logits, and the outputs of ``blocks``, that ``settings`` may ask to be matched.

    Returns:
        The trained network (its EMA where asked for) and one row per epoch: epoch, loss, lr, accuracy (percent).

    Raises:
        NonFiniteLossError: naming epoch and step; the last whole epoch stays on disk.
        RecipeError: ``state`` holds a training with other settings.
    """
    task, optimizer = _prepare(accelerator, model, settings, teacher, blocks)
    loader, test = accelerator.prepare_data_loader(loaders[0]), accelerator.prepare_data_loader(loaders[1])
    scheduler = create_scheduler_v2(
        optimizer,
        settings.scheduler,
        num_epochs=settings.epochs,
        warmup_epochs=settings.warmup_epochs,
        warmup_lr=settings.lr / 100,
        step_on_epochs=False,
        updates_per_epoch=len(loader),
    )[0]
    ema = task.get_trainable_module(ema=True)
    done, rows = state.load(accelerator, ema)
    for epoch in range(done, settings.epochs):
        set_seed(seed + epoch)  # one seed an epoch, so a resumed training repeats what would have come
        loss = _epoch(accelerator, task, optimizer, scheduler, loader, settings, epoch, label)
        accuracy = evaluate(accelerator, ema.module if ema else task.trainable_module, test, classes)
        rows.append({"epoch": epoch + 1, "loss": loss, "lr": optimizer.param_groups[0]["lr"], "accuracy": accuracy})
        state.save(accelerator, ema, epoch + 1, rows)
    trained = ema.module if ema else accelerator.unwrap_model(task.trainable_module, keep_fp32_wrapper=False)
    accelerator.free_memory()
    return trained.eval(), rows


def _prepare(
    accelerator: Accelerator,
    model: nn.Module,
    settings: TrainSettings,
    teacher: nn.Module | None,
    blocks: Sequence[str],
) -> tuple[Any, torch.optim.Optimizer]:
    """The task, its network and optimiser on the device, wrapped for as many processes as there are."""
    model.to(accelerator.device).train()
    optimizer = create_optimizer_v2(
        model, opt=settings.optimizer, lr=settings.lr, weight_decay=settings.weight_decay, momentum=0.9
    )
    task = _task(accelerator, model, settings, teacher, blocks)
    if settings.ema_decay:
        task.setup_ema(decay=settings.ema_decay, use_warmup=True)
    task.trainable_module, optimizer = accelerator.prepare(model, optimizer)
    return task, optimizer


def _task(
    accelerator: Accelerator,
    model: nn.Module,
    settings: TrainSettings,
    teacher: nn.Module | None,
    blocks: Sequence[str],
) -> TrainingTask:
    """timm's task for the settings: with labels only, or from the teacher's logits and blocks too."""
    criterion = SoftTargetCrossEntropy() if settings.mixup else LabelSmoothingCrossEntropy(settings.smoothing)
    common: dict[str, Any] = {"criterion": criterion, "device": accelerator.device, "verbose": False}
    if teacher is None or not settings.distills:
        return ClassificationTask(model, **common)
    common |= {
        "task_loss_weight": 1 - settings.distill_weight,
        "distill_loss_weight": settings.distill_weight,
        "temperature": settings.temperature,
    }
    teacher = accelerator.prepare_model(teacher.eval().requires_grad_(False), evaluation_mode=True)
    return BlockDistillationTask(model, teacher, blocks=blocks, block_weight=settings.block_weight, **common)


def _epoch(
    accelerator: Accelerator,
    task: Any,
    optimizer: torch.optim.Optimizer,
    scheduler: Any,
    loader: DataLoader,
    settings: TrainSettings,
    epoch: int,
    label: str,
) -> float:
    """One pass over the data; returns the mean loss."""
    mixup = Mixup(mixup_alpha=settings.mixup, num_classes=_classes(task)) if settings.mixup else None
    task.train()
    total = 0.0
    title = f"{label} {epoch + 1}/{settings.epochs}"
    bar = tqdm(loader, desc=title, leave=False, mininterval=0.5, disable=not accelerator.is_local_main_process)
    for step, (images, labels) in enumerate(bar):
        images, labels = images.to(accelerator.device), labels.to(accelerator.device)  # noqa: PLW2901
        if mixup is not None and len(images) % 2 == 0:
            images, labels = mixup(images, labels)  # noqa: PLW2901
        elif mixup is not None:
            labels = nn.functional.one_hot(labels, _classes(task)).float()  # noqa: PLW2901
        loss = task(images, labels)["loss"]  # the networks are prepared to autocast; the loss itself is in float32
        value = loss.item()
        if not math.isfinite(value):
            raise NonFiniteLossError(f"{title}: the loss is {value} at step {step + 1}; a lower lr is the usual remedy")
        accelerator.backward(loss)
        if settings.clip_grad:
            accelerator.clip_grad_norm_(task.trainable_module.parameters(), settings.clip_grad)
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step_update(epoch * len(loader) + step + 1)
        task.update_ema()
        total += value
        bar.set_postfix(loss=f"{value:.3f}", refresh=False)
    return total / max(1, len(loader))


def _classes(task: Any) -> int:
    last = [m for m in task.trainable_module.modules() if isinstance(m, nn.Linear)][-1]
    return int(last.out_features)
