"""Time a recipe's training beside a bare loop over the same network: is the loader or the trainer in the way?"""

import copy
import itertools
import multiprocessing
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader

import surgery
from surgery.core.errors import SurgeryError
from surgery.core.run_setting import threads_set_to
from surgery.core.table import table
from surgery.core.timing import Timing, interleaved
from surgery.training.auxiliary_losses import whole_loss
from surgery.training.block_distillation import distilled_blocks
from surgery.training.data_loading import make_loader
from surgery.training.datasets import open_dataset
from surgery.training.evidence_images import evidence_images
from surgery.training.image_dataset import ImageDataset
from surgery.training.job_setup import make_execution, make_task
from surgery.training.non_finite import NonFiniteLossError
from surgery.training.objective import prepare_objective
from surgery.training.original_network import make_original
from surgery.training.precision import precision_here
from surgery.training.recipe import Recipe, RecipeError, TrainSettings
from surgery.training.task import Task
from surgery.training.trainer import BatchTooLargeError, Training
from surgery.training.training_spec import Execution, TrainingSpec, student_copy
from surgery.training.training_state import Progress, TrainingState

BLOCKS = 2 * 20  # that the time is divided into: rounds of a trainer's and a bare block


@dataclass(frozen=True)
class TrainingResult:
    """One recipe.

    Attributes:
        stage: ``baseline`` or ``finetune``.
        batch, steps: images of a step, steps of a block.
        timing: of blocks: ``trainer``, ``bare``.
        waiting: the share of the trainer's time that went into waiting for batches.
        workers: processes that loaded images.
    """

    stage: str
    batch: int
    steps: int
    timing: Timing
    waiting: float
    workers: int
    device: str

    def rate(self, name: str) -> float:
        """Images per second."""
        return self.steps * self.batch / self.timing.median(name)

    def __str__(self) -> str:
        ratio = "{:.3f} [{:.3f} {:.3f}]".format(*self.timing.ratio("bare", "trainer"))
        rows = [
            (title, f"{self.rate(name):.1f}", f"{self.timing.median(name) / self.steps * 1e3:.2f} ms")
            for title, name in (("trainer", "trainer"), ("bare loop", "bare"))
        ]
        rounds = len(self.timing.seconds["bare"])
        return (
            f"{self.stage}, batch {self.batch}: {rounds} rounds in turn, steps of each in one round: {self.steps}\n\n"
            f"{table(('', 'images/s', 'a step'), rows, right=(1, 2))}\n\n"
            f"trainer/bare: {ratio}\n"
            f"waiting for the loader: {100 * self.waiting:.1f} % of the trainer's time (data.workers={self.workers})"
        )


def bench_training(recipe: Recipe, *, seconds: float = 10.0) -> TrainingResult:
    """Time the recipe's first training and a bare loop over a copy of its network, in turn in this process.

    That is the baseline, or the fine-tuning where there is none. Pretrained weights are not fetched, and nothing is
    written.

    Raises:
        RecipeError, SurgeryError, OSError: what would stop the job as well.
    """
    accelerator = Accelerator(mixed_precision=precision_here(recipe.precision))
    try:
        with threads_set_to(recipe.threads or None), tempfile.TemporaryDirectory() as folder:
            setup = _set_up(recipe, accelerator)
            watched, trainer = _trainer(setup, Path(folder))
            return _timed(setup, watched, trainer, _bare(setup), seconds)
    except (BatchTooLargeError, NonFiniteLossError) as error:
        raise SurgeryError(str(error)) from error
    finally:
        accelerator.free_memory()


@dataclass(frozen=True)
class _Setup:
    """What the trainer and the bare loop share; each copies the networks."""

    recipe: Recipe
    accelerator: Accelerator
    data: ImageDataset
    task: Task
    stage: str
    settings: TrainSettings
    network: nn.Module
    teacher: nn.Module | None
    blocks: list[str]

    @property
    def execution(self) -> Execution:
        return make_execution(self.recipe)

    def student(self) -> nn.Module:
        return student_copy(self.accelerator, self.network, self.execution)

    def spec(self) -> TrainingSpec:
        """With a teacher of its own."""
        return TrainingSpec(
            self.accelerator,
            self.task,
            self.settings,
            copy.deepcopy(self.teacher),
            self.blocks,
            self.execution,
            self.recipe.seed,
            self.stage,
        )

    def loader(self, training: bool = True, workers: int | None = None) -> DataLoader:
        settings, images = self.recipe.data, self.data.train if training else self.data.test
        settings = settings if workers is None else replace(settings, workers=workers)
        return make_loader(images, settings, training, self.settings.batch_size if training else None)


def _set_up(recipe: Recipe, accelerator: Accelerator) -> _Setup:
    stage = "baseline" if recipe.baseline.epochs else "finetune"
    settings: TrainSettings = getattr(recipe, stage)
    if not settings.epochs:
        raise RecipeError("baseline.epochs=0, finetune.epochs=0: there is no training to time")
    torch.manual_seed(recipe.seed)
    data = open_dataset(recipe.data)
    network, teacher, blocks = make_original(recipe, data.classes, download=False), None, []
    if stage == "finetune":
        original = network
        images = evidence_images(recipe, data.train, recipe.seed)
        network = surgery.convert(
            original, recipe.surgery.method, strict=True, images=images, **recipe.surgery_arguments
        )
        if settings.distills:
            teacher = original.to(accelerator.device).to(memory_format=make_execution(recipe).memory_format)
        size = recipe.data.image_size
        blocks = distilled_blocks(settings, network, original, (3, size, size), accelerator.device)
    return _Setup(recipe, accelerator, data, make_task(recipe, data), stage, settings, network, teacher, blocks)


@dataclass
class _Watched:
    """A loader that adds up how long its batches were waited for."""

    loader: Any
    waited: float = 0.0

    def __len__(self) -> int:
        return len(self.loader)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)

    def __iter__(self) -> Iterator[Any]:
        begin = time.perf_counter()
        batches = iter(self.loader)
        while True:
            batch = next(batches, None)
            self.waited += time.perf_counter() - begin
            if batch is None:
                return
            yield batch
            begin = time.perf_counter()


def _trainer(setup: _Setup, folder: Path) -> tuple[_Watched, Callable[[], object]]:
    """The loader, and what takes the next step of the real trainer, epoch after epoch."""
    loaders = (setup.loader(), setup.loader(training=False))
    training = Training(setup.spec(), setup.student(), loaders, TrainingState(folder, {}))
    # inside Accelerate's loader, whose own next() waits for the device as well, to copy the batch there
    prepared: Any = training.loader
    watched = prepared.base_dataloader = _Watched(prepared.base_dataloader)
    epochs = itertools.cycle(range(setup.settings.epochs))
    steps = itertools.chain.from_iterable(training.each_step(Progress(epoch)) for epoch in epochs)
    return watched, lambda: next(steps)


def _bare(setup: _Setup) -> Callable[[], object]:
    """A step on one batch that is already there, the loss left on the device: what no training can do without."""
    device, settings, accelerator = setup.accelerator.device, setup.settings, setup.accelerator
    spec = replace(setup.spec(), settings=replace(settings, ema_decay=0.0))
    objective, prepared = prepare_objective(spec, setup.student())
    optimizer: torch.optim.Optimizer = prepared.optimizer  # type: ignore[attr-defined]
    for group in optimizer.param_groups:
        group["lr"] = 1e-9  # one batch over and over would be learnt by heart, down to gradients that are denormal
    scaler = torch.amp.GradScaler(device.type, enabled=accelerator.mixed_precision == "fp16")
    images, labels = _batch(setup)
    objective.train()
    turn = itertools.count(1)

    def step() -> None:
        loss = whole_loss(objective, images, labels)
        scaler.scale(loss / settings.accumulate).backward()
        if next(turn) % settings.accumulate == 0:
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()

    return step


def _batch(setup: _Setup) -> tuple[Tensor, Tensor]:
    """Random images with labels of the dataset, mixed where the settings ask for it."""
    images, labels = next(iter(setup.loader(workers=0)))
    device = setup.accelerator.device
    images = torch.randn_like(images).to(device, memory_format=setup.execution.memory_format)
    mixer, labels = setup.task.mixer(setup.settings), labels.to(device)
    return (images, labels) if mixer is None else mixer(images, labels)


def _timed(
    setup: _Setup, watched: _Watched, trainer: Callable[[], object], bare: Callable[[], object], seconds: float
) -> TrainingResult:
    """Time blocks of steps in turn; whole blocks, so that the device is waited for as seldom as in a training."""
    device, workers = setup.accelerator.device.type, setup.recipe.data.workers
    earlier_processes = set(multiprocessing.active_children())
    for _ in range(2):
        trainer()
    loading = _Loading([child for child in multiprocessing.active_children() if child not in earlier_processes])
    begin = time.perf_counter()
    trainer()
    # workers deliver in bursts of one batch each: a block holds at least one of them
    steps = max(1, workers, int(seconds / BLOCKS / (time.perf_counter() - begin)))
    waits: list[float] = []

    def trainer_block() -> None:
        waited_before = watched.waited
        for _ in range(steps):
            trainer()
        waits.append(watched.waited - waited_before)

    def bare_block() -> None:
        with loading.paused():
            for _ in range(steps):
                bare()

    blocks = {"trainer": trainer_block, "bare": bare_block}
    timing = interleaved(blocks, seconds=seconds, device=device, label=setup.stage)
    waiting = sum(waits[-len(timing.seconds["trainer"]) :]) / sum(timing.seconds["trainer"])
    batch = min(setup.settings.batch_size or setup.recipe.data.batch_size, len(setup.data.train))  # type: ignore[arg-type]
    return TrainingResult(setup.stage, batch, steps, timing, waiting, workers, device)


@dataclass
class _Loading:
    """The processes that load images. They stand still while the bare loop runs: else they would take the processor
    from it, and have batches in stock for the trainer that it would have had to wait for."""

    workers: list[BaseProcess] = field(default_factory=list)

    @contextmanager
    def paused(self) -> Iterator[None]:
        try:
            self._send("SIGSTOP")
            yield
        finally:
            self._send("SIGCONT")

    def _send(self, name: str) -> None:
        for worker in self.workers:
            if hasattr(signal, name) and worker.pid is not None:  # Windows has none: they run on there
                os.kill(worker.pid, getattr(signal, name))
