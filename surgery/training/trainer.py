"""One training: timm's task, optimiser, scheduler, mixup and EMA, driven by Accelerate."""

import math
import time
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, set_seed
from timm.data import Mixup
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.task import ClassificationTask, TrainingTask
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchmetrics.classification import MulticlassAccuracy
from tqdm import tqdm

from surgery.training.block_distillation import BlockDistillationTask
from surgery.training.order import EpochSampler
from surgery.training.recipe import TrainSettings
from surgery.training.state import Progress, TrainingState


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
    memory_format: torch.memory_format = torch.preserve_format,
    seed: int = 0,
    label: str = "train",
) -> tuple[nn.Module, list[dict[str, Any]]]:
    """Train ``model`` for the steps that its state lacks.

    Every step draws its random numbers from (seed, epoch, step), and every image its augmentation from (seed, epoch,
    index), so what is resumed, at whatever step, goes on as it would have.

    Args:
        loaders: of training and test images; the first is of :func:`surgery.training.data.make_loader`.
        teacher: gives the logits, and the outputs of ``blocks``, that ``settings`` may ask to be matched.

    Returns:
        The trained network (its EMA where asked for) and one row per epoch: epoch, loss, lr, accuracy (percent).

    Raises:
        NonFiniteLossError: naming epoch and step; the last state stays on disk.
        RecipeError: ``state`` holds a training with other settings.
    """
    order = cast(EpochSampler, loaders[0].sampler)
    order.seed = seed
    task, optimizer = _prepare(accelerator, model, settings, teacher, blocks)
    loader, test = (accelerator.prepare_data_loader(each) for each in loaders)
    running = _Training(accelerator, task, optimizer, loader, order, settings, state, memory_format, seed, label)
    ema = running.ema
    progress = state.load(accelerator, ema)
    while progress.epoch < settings.epochs:
        loss = running.epoch(progress)
        accuracy = evaluate(accelerator, ema.module if ema else task.trainable_module, test, classes)
        lr = optimizer.param_groups[0]["lr"]
        row = {"epoch": progress.epoch + 1, "loss": loss, "lr": lr, "accuracy": accuracy}
        progress = Progress(progress.epoch + 1, history=[*progress.history, row])
        state.save(accelerator, ema, progress)
    trained = ema.module if ema else accelerator.unwrap_model(task.trainable_module, keep_fp32_wrapper=False)
    accelerator.free_memory()
    return trained.eval(), progress.history


class _Training:
    """What the epochs of one training share."""

    def __init__(
        self,
        accelerator: Accelerator,
        task: Any,
        optimizer: torch.optim.Optimizer,
        loader: DataLoader,
        order: EpochSampler,
        settings: TrainSettings,
        state: TrainingState,
        memory_format: torch.memory_format,
        seed: int,
        label: str,
    ) -> None:
        self.accelerator, self.task, self.optimizer, self.loader = accelerator, task, optimizer, loader
        self.order, self.settings, self.state, self.seed, self.label = order, settings, state, seed, label
        self.format = memory_format
        order.begin(0)
        self.steps = len(loader)  # of a whole epoch
        self.scheduler = create_scheduler_v2(
            optimizer,
            settings.scheduler,
            num_epochs=settings.epochs,
            warmup_epochs=settings.warmup_epochs,
            warmup_lr=settings.lr / 100,
            step_on_epochs=False,
            updates_per_epoch=self.steps,
        )[0]
        self.ema = task.get_trainable_module(ema=True)
        self.mixup = Mixup(mixup_alpha=settings.mixup, num_classes=_classes(task)) if settings.mixup else None

    def epoch(self, progress: Progress) -> float:
        """The rest of an epoch; returns the mean loss of all of it."""
        self.order.begin(progress.epoch, progress.step * self._images_per_step())
        self.task.train()
        title = f"{self.label} {progress.epoch + 1}/{self.settings.epochs}"
        total, saved = progress.loss, time.monotonic()
        hidden = not self.accelerator.is_local_main_process
        bar = tqdm(total=self.steps, initial=progress.step, desc=title, leave=False, mininterval=0.5, disable=hidden)
        with bar:
            for step, (images, labels) in enumerate(self.loader, progress.step):
                _seed_step(self.seed, progress.epoch, step, self.accelerator.process_index)
                images = images.to(self.accelerator.device, memory_format=self.format)  # noqa: PLW2901
                value = self._step(images, labels.to(self.accelerator.device))
                if not math.isfinite(value):
                    raise NonFiniteLossError(
                        f"{title}: the loss is {value} at step {step + 1}; a lower lr is the usual remedy"
                    )
                self.scheduler.step_update(progress.epoch * self.steps + step + 1)
                total += value
                bar.update()
                bar.set_postfix(loss=f"{value:.3f}", refresh=False)
                if self._due(saved) and step + 1 < self.steps:
                    reached = Progress(progress.epoch, step + 1, total, progress.history)
                    self.state.save(self.accelerator, self.ema, reached)
                    saved = time.monotonic()
        mean = total / max(1, self.steps)
        if self.accelerator.num_processes == 1:
            return mean
        return self.accelerator.reduce(torch.tensor(mean, device=self.accelerator.device), "mean").item()

    def _due(self, saved: float) -> bool:
        """Whether a state is to be written, as the main process's clock has it."""
        due = time.monotonic() - saved >= 60 * self.settings.save_minutes
        if self.accelerator.num_processes == 1:
            return due
        return bool(broadcast(torch.tensor(due, device=self.accelerator.device)))

    def _images_per_step(self) -> int:
        """Of all processes together."""
        return self.order.batch_size * self.accelerator.num_processes

    def _step(self, images: Tensor, labels: Tensor) -> float:
        if self.mixup is not None and len(images) % 2 == 0:
            images, labels = self.mixup(images, labels)
        elif self.mixup is not None:
            labels = nn.functional.one_hot(labels, _classes(self.task)).float()
        loss = self.task(images, labels)["loss"]  # the networks are prepared to autocast; the loss itself is in float32
        value = loss.item()
        if math.isfinite(value):
            self.accelerator.backward(loss)
            if self.settings.clip_grad:
                self.accelerator.clip_grad_norm_(self.task.trainable_module.parameters(), self.settings.clip_grad)
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.task.update_ema()
        return value


def _seed_step(*numbers: int) -> None:
    set_seed(int(np.random.SeedSequence(numbers).generate_state(1)[0]))


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
        model,
        opt=settings.optimizer,
        lr=settings.lr,
        weight_decay=settings.weight_decay,
        momentum=0.9,
        filter_bias_and_bn=not settings.decay_all,
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


def _classes(task: Any) -> int:
    last = [m for m in task.trainable_module.modules() if isinstance(m, nn.Linear)][-1]
    return int(last.out_features)
