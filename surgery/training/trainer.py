"""One training: timm's task, optimiser, scheduler, mixup and EMA, driven by Accelerate."""

import copy
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, broadcast, broadcast_object_list, set_seed
from accelerate.utils.memory import should_reduce_batch_size
from timm.layers import convert_sync_batchnorm
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.task import ClassificationTask
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from surgery.training.auxiliary_losses import whole_loss
from surgery.training.batch_norm_statistics import batch_norms, frozen_statistics
from surgery.training.block_distillation import BlockDistillationTask, distillation_options
from surgery.training.non_finite import NonFiniteLossError, first_non_finite
from surgery.training.recipe import RecipeError, TrainSettings
from surgery.training.sampling_order import EpochSampler
from surgery.training.stopping import Stopped, StopRequests
from surgery.training.task import Task
from surgery.training.training_state import Progress, TrainingState


class BatchTooLargeError(RuntimeError):
    """A step needs more memory than there is."""


@dataclass(frozen=True)
class Execution:
    """How networks are run (keys of a recipe)."""

    memory_format: torch.memory_format = torch.preserve_format
    sync_bn: bool = False
    compile: bool = False
    checkpoint_activations: bool = False


def train(
    accelerator: Accelerator,
    model: nn.Module,
    loaders: tuple[DataLoader, DataLoader],
    task: Task,
    settings: TrainSettings,
    state: TrainingState,
    *,
    teacher: nn.Module | None = None,
    blocks: Sequence[str] = (),
    execution: Execution = Execution(),
    seed: int = 0,
    label: str = "train",
    stop: StopRequests | None = None,
    reached: Callable[[nn.Module, list[dict[str, Any]]], None] = lambda network, history: None,
) -> tuple[nn.Module, list[dict[str, Any]]]:
    """Train ``model`` for the steps that its state lacks.

    Every step draws its random numbers from (seed, epoch, step), and every image its augmentation from (seed, epoch,
    index), so what is resumed, at whatever step, goes on as it would have.

    Args:
        model: it is given the trained weights only when all is done.
        loaders: of training and test images; the first is of :func:`surgery.training.data_loading.make_loader`.
        task: what the loss and the metric are.
        teacher: gives the logits, and the outputs of ``blocks``, that ``settings`` may ask to be matched.
        stop: signals; one that comes is obeyed when a step is whole and the state written.
        reached: called after each epoch, and once with what a state held, with the network so far (its EMA where asked
            for) and the rows so far.

    Returns:
        ``model`` in eval mode, with the trained weights (their EMA where asked for), and one row per epoch: epoch,
        loss, lr, accuracy (the task's metric, in percent).

    Raises:
        NonFiniteLossError: naming epoch, step, images and layer; the last state stays on disk.
        BatchTooLargeError: naming what would need less memory.
        RecipeError: ``state`` holds a training with other settings.
        OSError: the state cannot be written; the one before is still there.
        Stopped: a signal came.
    """
    order = cast(EpochSampler, loaders[0].sampler)
    order.seed = seed
    check_sharding(accelerator, settings)
    student = student_copy(accelerator, model, execution)
    training = Training(accelerator, student, loaders, task, settings, state, teacher, blocks, execution, seed, label)
    training.stop = stop or training.stop
    try:
        history = training.run(reached)
        model.load_state_dict(training.weights())
    finally:
        accelerator.free_memory()
    return model.to(accelerator.device).eval(), history


def check_sharding(accelerator: Accelerator, settings: TrainSettings) -> None:
    """Raise RecipeError for what needs whole weights where FSDP shards them."""
    if accelerator.distributed_type != DistributedType.FSDP:
        return
    for key in ("ema_decay", "distill_weight", "block_weight", "keep_best"):
        if getattr(settings, key):
            raise RecipeError(f"{key}={getattr(settings, key)}: not with FSDP, which shards the weights; leave it out")


def check_execution(accelerator: Accelerator, model: nn.Module, execution: Execution) -> None:
    """Raise RecipeError where ``model`` cannot be run so here."""
    if execution.checkpoint_activations and not hasattr(model, "set_grad_checkpointing"):
        raise RecipeError(
            f"checkpoint_activations=true: {type(model).__name__} has no set_grad_checkpointing, as timm's have"
        )
    if execution.sync_bn and accelerator.num_processes > 1 and accelerator.device.type == "cpu":
        raise RecipeError("sync_bn=true: torch's SyncBatchNorm needs GPUs; false is needed on CPUs")


def student_copy(accelerator: Accelerator, model: nn.Module, execution: Execution) -> nn.Module:
    """A copy to train, as it is to be run."""
    check_execution(accelerator, model, execution)
    student = copy.deepcopy(model).to(accelerator.device).to(memory_format=execution.memory_format).train()
    if execution.checkpoint_activations:
        cast(Any, student).set_grad_checkpointing(True)
    if execution.sync_bn and accelerator.num_processes > 1:
        student = convert_sync_batchnorm(student)
    if execution.compile:
        student.compile()
    return student


class Training:
    """What the epochs of one training share."""

    def __init__(
        self,
        accelerator: Accelerator,
        student: nn.Module,
        loaders: tuple[DataLoader, DataLoader],
        task: Task,
        settings: TrainSettings,
        state: TrainingState,
        teacher: nn.Module | None,
        blocks: Sequence[str],
        execution: Execution,
        seed: int,
        label: str,
    ) -> None:
        self.accelerator, self.task, self.settings, self.state = accelerator, task, settings, state
        self.seed, self.label, self.format = seed, label, execution.memory_format
        self.stop = StopRequests()
        self.norms = batch_norms(student) if execution.checkpoint_activations else []
        self.order = cast(EpochSampler, loaders[0].sampler)
        accelerator.gradient_accumulation_steps = settings.accumulate
        self.objective, self.optimizer = prepare_objective(accelerator, student, task, settings, teacher, blocks)
        self.loader, self.test = (accelerator.prepare_data_loader(each) for each in loaders)
        self.ema = self.objective.get_trainable_module(ema=True)
        self.mixer = task.mixer(settings)
        self.order.begin(0)
        self.steps = len(self.loader)  # of a whole epoch
        self.scheduler = make_scheduler(self.optimizer, settings, self.steps)

    def run(self, reached: Callable[[nn.Module, list[dict[str, Any]]], None]) -> list[dict[str, Any]]:
        """All epochs that the state lacks; returns the rows of all of them."""
        with self.stop.deferred():
            progress = self.state.load(self.accelerator, self.ema)
            network = self.ema.module if self.ema else self.accelerator.unwrap_model(self.objective.trainable_module)
            if progress.history:
                reached(network, progress.history)
            while progress.epoch < self.settings.epochs:
                whole = self.epoch(progress)
                accuracy = self._judge(whole)
                lr = self.optimizer.param_groups[0]["lr"]
                row = {"epoch": whole.epoch + 1, "loss": self._mean(whole.loss), "lr": lr, "accuracy": accuracy}
                progress = Progress(whole.epoch + 1, history=[*whole.history, row])
                self.state.save(self.accelerator, self.ema, progress)
                reached(network, progress.history)
            _, signum = self._due(time.monotonic())
            if signum:
                raise Stopped(signum)
        return progress.history

    def _judge(self, whole: Progress) -> float:
        """The metric after an epoch's steps. It takes long, so a signal does not wait for it."""
        judged = self.ema.module if self.ema else self.objective.trainable_module
        try:
            with self.stop.deferred(self.accelerator.num_processes > 1):  # which must leave it together
                return self.task.evaluate(self.accelerator, judged, self.test)
        except Stopped as stopped:
            self._save_and_stop(whole, stopped.signum)
            raise

    def _save_and_stop(self, reached: Progress, signum: int) -> None:
        self.state.save(self.accelerator, self.ema, reached)
        raise Stopped(signum, f"{self._title(reached.epoch)}, step {reached.step} of {self.steps},") from None

    def weights(self) -> dict[str, Tensor]:
        """Of the network so far, or of its EMA, whole on every process."""
        if self.ema:
            return self.ema.module.state_dict()
        weights = self.accelerator.get_state_dict(self.objective.trainable_module)
        if self.accelerator.distributed_type == DistributedType.FSDP:  # which gives them to the main process alone
            (weights,) = broadcast_object_list([weights])
        return weights

    def epoch(self, progress: Progress) -> Progress:
        """The rest of an epoch's steps; returns where they end, with the sum of all its losses."""
        total, saved = progress.loss, time.monotonic()
        hidden, title = not self.accelerator.is_local_main_process, self._title(progress.epoch)
        bar = tqdm(total=self.steps, initial=progress.step, desc=title, leave=False, mininterval=0.5, disable=hidden)
        with bar:
            for step, value in self.each_step(progress):
                total += value
                bar.update()
                bar.set_postfix(loss=f"{value:.3f}", refresh=False)
                if self.accelerator.sync_gradients:
                    reached = Progress(progress.epoch, step + 1, total, progress.history)
                    saved = self._save_where_due(reached, saved)
        return Progress(progress.epoch, self.steps, total, progress.history)

    def _save_where_due(self, reached: Progress, saved: float) -> float:
        """Write the state after a while, or for a signal, which then ends the job; returns when it was last written."""
        due, signum = self._due(saved)
        if signum:
            self._save_and_stop(reached, signum)
        if not due or reached.step == self.steps:
            return saved
        self.state.save(self.accelerator, self.ema, reached)
        return time.monotonic()

    def _mean(self, total: float) -> float:
        """An epoch's mean loss, over all processes, of the sum in this one."""
        mean = total / max(1, self.steps)
        if self.accelerator.num_processes == 1:
            return mean
        return self.accelerator.reduce(torch.tensor(mean, device=self.accelerator.device), "mean").item()

    def each_step(self, progress: Progress) -> Iterator[tuple[int, float]]:
        """Take the steps that an epoch lacks, one at a time; yields the number and the loss of each."""
        if progress.step >= self.steps:
            return
        self.order.begin(progress.epoch, progress.step * self._images_per_step())
        self.objective.train()
        if isinstance(self.objective, BlockDistillationTask):
            self.objective.block_weight = self.settings.block_weight_in(progress.epoch)
        for step, (images, labels) in enumerate(self.loader, progress.step):
            _seed_step(self.seed, progress.epoch, step, self.accelerator.process_index)
            images = images.to(self.accelerator.device, memory_format=self.format)  # noqa: PLW2901
            value = self._affordable_step(step, images, labels.to(self.accelerator.device))
            if not math.isfinite(value):
                raise NonFiniteLossError(self._blame(self._title(progress.epoch), value, progress.epoch, step, images))
            self.scheduler.step_update(progress.epoch * self.steps + step + 1)
            yield step, value

    def _title(self, epoch: int) -> str:
        return f"{self.label} {epoch + 1}/{self.settings.epochs}"

    def _due(self, saved: float) -> tuple[bool, int]:
        """Whether a state is to be written, and the signal to obey or 0, as the main process has them."""
        due, signum = time.monotonic() - saved >= 60 * self.settings.save_minutes, self.stop.signum or 0
        if self.accelerator.num_processes == 1:
            return due, signum
        seen = broadcast(torch.tensor([int(due), signum], device=self.accelerator.device))
        return bool(seen[0]), int(seen[1])

    def _images_per_step(self) -> int:
        """Of all processes together."""
        return self.order.batch_size * self.accelerator.num_processes

    def _affordable_step(self, step: int, images: Tensor, labels: Tensor) -> float:
        try:
            return self._step(step, images, labels)
        except (RuntimeError, MemoryError) as error:
            if not isinstance(error, (MemoryError, torch.OutOfMemoryError)) and not should_reduce_batch_size(error):
                raise
            size = self.order.batch_size
            raise BatchTooLargeError(
                f"{self.label}: a batch of {size} images of {images.shape[-2]}×{images.shape[-1]} needs more memory "
                f"than there is; batch_size={max(2, size // 2)} with accumulate={2 * self.settings.accumulate} learns "
                "the same, find_batch_size=true finds what fits; precision=bf16, checkpoint_activations=true need less"
            ) from error

    def _step(self, step: int, images: Tensor, labels: Tensor) -> float:
        if self.mixer is not None:
            images, labels = self.mixer(images, labels)
        with self.accelerator.accumulate(self.objective.trainable_module):
            loss = whole_loss(self.objective, images, labels)  # networks are prepared to autocast; this is in float32
            value = loss.item()
            if math.isfinite(value):
                with frozen_statistics(self.norms):
                    self.accelerator.backward(loss * self._lacking(step))
                if self.settings.clip_grad and self.accelerator.sync_gradients:
                    parameters = self.objective.trainable_module.parameters()
                    self.accelerator.clip_grad_norm_(parameters, self.settings.clip_grad)
                self.optimizer.step()
                self.optimizer.zero_grad()
        if self.accelerator.sync_gradients:
            self.objective.update_ema()
        return value

    def _lacking(self, step: int) -> float:
        """Accelerate divides a loss by ``accumulate``, also where an epoch's last update has fewer batches."""
        accumulate = self.settings.accumulate
        return accumulate / min(accumulate, self.steps - step // accumulate * accumulate)

    def _blame(self, title: str, value: float, epoch: int, step: int, images: Tensor) -> str:
        number = step * self.accelerator.num_processes + self.accelerator.process_index
        shown = ", ".join(str(index) for index in self.order.batch(epoch, number)[:8])
        network = self.accelerator.unwrap_model(self.objective.trainable_module)
        return (
            f"{title}: the loss is {value} at step {step + 1} (training images {shown}, …): "
            f"{first_non_finite(network, images)}. A lower lr or clip_grad=1 is the usual remedy"
        )


def make_optimizer(network: nn.Module, settings: TrainSettings) -> torch.optim.Optimizer:
    """timm's optimiser; raises RecipeError where it cannot be made here."""
    try:
        return create_optimizer_v2(
            network,
            opt=settings.optimizer,
            lr=settings.lr,
            weight_decay=settings.weight_decay,
            momentum=0.9,
            filter_bias_and_bn=not settings.decay_all,
        )
    except (AssertionError, ImportError, TypeError, ValueError) as error:  # of a GPU or a package that is lacking
        raise RecipeError(f"optimizer={settings.optimizer!r}, lr={settings.lr}: {error}") from error


def make_scheduler(optimizer: torch.optim.Optimizer, settings: TrainSettings, steps: int) -> Any:
    """timm's scheduler, for so many steps an epoch."""
    return create_scheduler_v2(
        optimizer,
        settings.scheduler,
        num_epochs=settings.epochs,
        decay_rate=settings.power if settings.scheduler == "poly" else 0.1,
        warmup_epochs=cast(Any, settings.warmup_epochs),  # parts of one too: it counts updates
        warmup_lr=settings.lr / 100,
        step_on_epochs=False,
        updates_per_epoch=steps,
    )[0]


def _seed_step(*numbers: int) -> None:
    set_seed(int(np.random.SeedSequence(numbers).generate_state(1)[0]))


def prepare_objective(
    accelerator: Accelerator,
    student: nn.Module,
    task: Task,
    settings: TrainSettings,
    teacher: nn.Module | None,
    blocks: Sequence[str],
) -> tuple[Any, torch.optim.Optimizer]:
    """The loss, with its network and optimiser, wrapped for as many processes as there are."""
    optimizer = make_optimizer(student, settings)
    objective: Any
    criterion = task.criterion(settings)
    if teacher is None or not settings.distills:
        objective = ClassificationTask(student, criterion, device=accelerator.device, verbose=False)
    else:
        teacher = accelerator.prepare_model(teacher.eval().requires_grad_(False), evaluation_mode=True)
        options = distillation_options(settings, accelerator)
        objective = task.distillation(student, teacher, blocks=blocks, criterion=criterion, **options)
    if settings.ema_decay:
        objective.setup_ema(decay=settings.ema_decay, use_warmup=True)
    objective.trainable_module, optimizer = accelerator.prepare(student, optimizer)
    return objective, optimizer
