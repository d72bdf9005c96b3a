"""One training: timm's task, optimiser, scheduler, mixup and EMA, driven by Accelerate."""

import math
import time
from collections.abc import Callable, Iterator
from typing import Any, cast

import numpy as np
import torch
from accelerate.utils import DistributedType, broadcast, broadcast_object_list, set_seed
from accelerate.utils.memory import should_reduce_batch_size
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from surgery.core.surgery_layer import set_progress
from surgery.training.auxiliary_losses import whole_loss
from surgery.training.batch_norm_statistics import batch_norms, frozen_statistics
from surgery.training.block_distillation import BlockDistillationTask
from surgery.training.dynamic_weight_decay import DynamicWeightDecay
from surgery.training.non_finite import NonFiniteLossError, first_non_finite
from surgery.training.objective import make_scheduler, prepare_objective
from surgery.training.progressive_size import sized
from surgery.training.sampling_order import EpochSampler
from surgery.training.stopping import Stopped, StopRequests
from surgery.training.training_spec import TrainingSpec, check_sharding, student_copy
from surgery.training.training_state import Progress, TrainingState


class BatchTooLargeError(RuntimeError):
    """A step needs more memory than there is."""


Rows = list[dict[str, Any]]  # of each epoch: epoch, loss, lr, accuracy (the task's metric, in percent)
Reached = Callable[[nn.Module, Rows], None]


def train(
    spec: TrainingSpec,
    model: nn.Module,
    loaders: tuple[DataLoader, DataLoader],
    state: TrainingState,
    *,
    stop: StopRequests | None = None,
    reached: Reached = lambda network, history: None,
) -> tuple[nn.Module, Rows]:
    """Train ``model`` for the steps that its state lacks; returns it in eval mode, with a row for each epoch.

    Every step draws its random numbers from (seed, epoch, step), and every image its augmentation from (seed, epoch,
    index), so what is resumed, at whatever step, goes on as it would have.

    Args:
        model: it is given the trained weights (their EMA where asked for) only when all is done.
        loaders: of training and test images; the first is of :func:`surgery.training.data_loading.make_loader`.
        stop: signals; one that comes is obeyed when a step is whole and the state written.
        reached: called after each epoch, and once with what a state held, with the network and the rows so far.

    Raises:
        NonFiniteLossError: naming epoch, step, images and layer; the last state stays on disk.
        BatchTooLargeError: naming what would need less memory.
        RecipeError: ``state`` holds a training with other settings.
        OSError: the state cannot be written; the one before is still there.
        Stopped: a signal came.
    """
    cast(EpochSampler, loaders[0].sampler).seed = spec.seed
    check_sharding(spec.accelerator, spec.settings)
    training = Training(spec, student_copy(spec.accelerator, model, spec.execution), loaders, state)
    training.stop = stop or training.stop
    try:
        history = training.run(reached)
        model.load_state_dict(training.weights())
    finally:
        if training.dynamic_decay is not None:
            training.dynamic_decay.close()
        spec.accelerator.free_memory()
    return model.to(spec.accelerator.device).eval(), history


class Training:
    """What the epochs of one training share."""

    def __init__(
        self, spec: TrainingSpec, student: nn.Module, loaders: tuple[DataLoader, DataLoader], state: TrainingState
    ) -> None:
        self.accelerator, self.task, self.settings = spec.accelerator, spec.task, spec.settings
        self.seed, self.label, self.memory_format = spec.seed, spec.label, spec.execution.memory_format
        self.state, self.stop = state, StopRequests()
        self.norms = batch_norms(student) if spec.execution.checkpoint_activations else []
        self.order = cast(EpochSampler, loaders[0].sampler)
        self.accelerator.gradient_accumulation_steps = self.settings.accumulate
        self.objective, self.optimizer = prepare_objective(spec, student)
        strength = self.settings.dynamic_weight_decay
        self.dynamic_decay = DynamicWeightDecay(student, strength) if strength else None
        self.loader, self.test = (self.accelerator.prepare_data_loader(loader) for loader in loaders)
        self.ema = self.objective.get_trainable_module(ema=True)
        self.mixer = self.task.mixer(self.settings)
        self.order.begin(0)
        self.steps = len(self.loader)  # of a whole epoch
        self.scheduler = make_scheduler(self.optimizer, self.settings, self.steps)

    def run(self, reached: Reached) -> Rows:
        """All epochs that the state lacks; returns the rows of all of them."""
        with self.stop.deferred():
            progress = self.state.load(self.accelerator, self.ema)
            network = self.ema.module if self.ema else self.accelerator.unwrap_model(self.objective.trainable_module)
            self._tell_layers(1.0)
            if progress.history:
                reached(network, progress.history)
            while progress.epoch < self.settings.epochs:
                finished = self.epoch(progress)
                accuracy = self._judge(finished)
                lr = self.optimizer.param_groups[0]["lr"]
                row = {"epoch": finished.epoch + 1, "loss": self._mean(finished.loss), "lr": lr, "accuracy": accuracy}
                progress = Progress(finished.epoch + 1, history=[*finished.history, row])
                self.state.save(self.accelerator, self.ema, progress)
                reached(network, progress.history)
            _, signum = self._due(time.monotonic())
            if signum:
                raise Stopped(signum)
        return progress.history

    def _judge(self, finished: Progress) -> float:
        """The metric after an epoch's steps, of the network as it would be handed over, whatever its layers' schedule.

        It takes long, so a signal does not wait for it.
        """
        self._tell_layers(1.0)
        network = self.ema.module if self.ema else self.objective.trainable_module
        try:
            with self.stop.deferred(self.accelerator.num_processes > 1):  # which must leave it together
                return self.task.evaluate(self.accelerator, network, self.test)
        except Stopped as stopped:
            self._save_and_stop(finished, stopped.signum)
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
        last = self.settings.epochs - 1
        self._tell_layers(progress.epoch / last if last else 1.0)
        if isinstance(self.objective, BlockDistillationTask):
            self.objective.block_weight = self.settings.block_weight_in(progress.epoch)
        for step, (images, labels) in enumerate(self.loader, progress.step):
            _seed_step(self.seed, progress.epoch, step, self.accelerator.process_index)
            images = sized(images.to(self.accelerator.device), self.settings, progress.epoch)  # noqa: PLW2901
            images = images.to(memory_format=self.memory_format)  # noqa: PLW2901
            value = self._affordable_step(step, images, labels.to(self.accelerator.device))
            if not math.isfinite(value):
                raise NonFiniteLossError(self._blame(self._title(progress.epoch), value, progress.epoch, step, images))
            self.scheduler.step_update(progress.epoch * self.steps + step + 1)
            yield step, value

    def _tell_layers(self, share: float) -> None:
        """Let layers that follow a schedule be what they are then; those of the EMA, which is judged, too."""
        for network in (self.objective.trainable_module, *([self.ema.module] if self.ema else [])):
            set_progress(network, share)

    def _title(self, epoch: int) -> str:
        return f"{self.label} {epoch + 1}/{self.settings.epochs}"

    def _due(self, saved: float) -> tuple[bool, int]:
        """Whether a state is to be written, and the signal to obey or 0, as the main process has them."""
        due, signum = time.monotonic() - saved >= 60 * self.settings.save_minutes, self.stop.signum or 0
        if self.accelerator.num_processes == 1:
            return due, signum
        agreed = broadcast(torch.tensor([int(due), signum], device=self.accelerator.device))
        return bool(agreed[0]), int(agreed[1])

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
            if self.dynamic_decay is not None:
                loss = loss + self.dynamic_decay.loss()
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
        indices = ", ".join(str(index) for index in self.order.batch(epoch, number)[:8])
        network = self.accelerator.unwrap_model(self.objective.trainable_module)
        return (
            f"{title}: the loss is {value} at step {step + 1} (training images {indices}, …): "
            f"{first_non_finite(network, images)}. A lower lr or clip_grad=1 is the usual remedy"
        )


def _seed_step(*numbers: int) -> None:
    set_seed(int(np.random.SeedSequence(numbers).generate_state(1)[0]))
