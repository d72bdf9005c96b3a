"""All that a job will need, made for real before anything starts: what fails there fails at once."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryFile

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import Dataset

import surgery
from surgery.core.errors import NoSitesError
from surgery.graph.skeleton import copied
from surgery.planning.registry import method_named
from surgery.training.block_distillation import distilled_blocks
from surgery.training.data_loading import make_loader
from surgery.training.evidence_images import evidence_images
from surgery.training.image_dataset import ImageDataset
from surgery.training.image_scan import readable_sample
from surgery.training.objective import make_scheduler, prepare_objective
from surgery.training.original_network import Original, find_original
from surgery.training.progressive_size import sized
from surgery.training.recipe import Recipe, RecipeError
from surgery.training.task import Task
from surgery.training.training_spec import (
    Execution,
    TrainingSpec,
    check_execution,
    check_sharding,
    student_copy,
)

FEW = 2  # images of a batch that go through the networks: the fewest that BatchNorm trains with
SOME = 32  # images at most that a method looks at


@dataclass(frozen=True)
class Rehearsed:
    """What a rehearsal made, on the CPU; batches are of training and of test images."""

    original: Original
    plan: surgery.Plan
    converted: nn.Module
    batches: tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]


def rehearse(
    accelerator: Accelerator, recipe: Recipe, data: ImageDataset, task: Task, execution: Execution
) -> Rehearsed:
    """Make the networks, and for each training a batch, the loss of it, the optimiser and the scheduler.

    Nothing is downloaded, written or kept: pretrained weights are left out. Where the job is to leave out images that
    cannot be read (``data.skip_unreadable``), the batches are of those that can be.

    Raises:
        RecipeError, SurgeryError, ValueError, OSError: what would stop the job at its beginning, or later.
    """
    _check_output(recipe)
    check_counts(recipe, data)
    for settings in (recipe.baseline, recipe.finetune):
        if settings.epochs:
            check_sharding(accelerator, settings)
    original = find_original(recipe, data.classes, download=False)
    _check_trained(recipe, original)
    check_execution(accelerator, original.network, execution)
    network, method = original.network, recipe.surgery.method
    images = evidence_images(recipe, _readable(recipe, data).train, recipe.seed, most=SOME)
    quick = getattr(method_named(method), "rehearsal_options", {})  # of a method that takes long
    arguments = {**recipe.surgery_arguments, **quick}
    plan = surgery.plan(network, method, images=images, **arguments)
    untrained = getattr(method_named(method), "untrained_options", None)  # of one that looks for what a training leaves
    if not plan.decisions and recipe.baseline.epochs and untrained:
        plan = surgery.plan(network, method, images=images, **{**arguments, **untrained})
    if not plan.decisions:
        raise NoSitesError(f"{recipe.model.checkpoint or recipe.model.name}: {plan.notes[0]}\n{plan}")
    converted = plan.apply(copied(network))
    training, test = _batches(recipe, data)
    for settings, student in ((recipe.baseline, network), (recipe.finetune, converted)):
        if settings.epochs:
            teacher = network if settings is recipe.finetune and settings.distills else None
            # compiling takes a minute
            spec = TrainingSpec(accelerator, task, settings, teacher, execution=replace(execution, compile=False))
            _rehearse_training(spec, student, (training[0][:FEW], training[1][:FEW]))
    return Rehearsed(original, plan, converted, (training, test))


def _check_output(recipe: Recipe) -> None:
    """The folder, or the nearest one above it that exists, must be one that can be written to."""
    output = Path(recipe.output).absolute()
    nearest = next(path for path in (output, *output.parents) if os.path.lexists(path))
    if not nearest.is_dir():
        problem = "there is a file of that name" if nearest == output else f"{nearest} is a file"
        raise RecipeError(f"output={recipe.output}: {problem}; a folder, old or new, is needed")
    try:
        with TemporaryFile(dir=nearest):  # the superuser may write anywhere, says os.access, also to /proc
            pass
    except OSError as error:
        raise RecipeError(f"output={recipe.output}: nothing can be written to {nearest}: {error.strerror}") from None


def check_counts(recipe: Recipe, data: ImageDataset) -> None:
    """Raise RecipeError where there are fewer training images than the recipe needs."""
    images: int = len(data.train)  # type: ignore[arg-type]
    if images < FEW:
        raise RecipeError(f"data.name={recipe.data.name} has {images} training images; at least {FEW} are needed")
    for name in ("calibrate", "images"):
        if (count := getattr(recipe.surgery, name) or 0) > images:
            raise RecipeError(f"surgery.{name}={count}: at most the {images} training images")


def _check_trained(recipe: Recipe, original: Original) -> None:
    """An original, or its new head, must be trained before it teaches; and a head before it is all that there is."""
    if recipe.baseline.epochs or not (original.new or recipe.from_scratch):
        return
    subject = f"the new {', '.join(original.new[:4])}" if original.new else f"{recipe.model.name}, freshly initialised,"
    if recipe.finetune.epochs and recipe.finetune.distills:
        raise RecipeError(
            f"baseline.epochs=0: {subject} would be the untrained teacher of the fine-tuning; "
            "baseline.epochs=10 trains the original first, finetune.distill_weight=0 and finetune.block_weight=0 do "
            "without a teacher"
        )
    if original.new and not recipe.finetune.epochs:
        raise RecipeError(
            f"baseline.epochs=0, finetune.epochs=0: {subject} would be saved untrained; one of them trains it"
        )


def _batches(recipe: Recipe, data: ImageDataset) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    data = _readable(recipe, data)
    return _batch(data.train, recipe, training=True), _batch(data.test, recipe, training=False)


def _readable(recipe: Recipe, data: ImageDataset) -> ImageDataset:
    """The dataset; a part of it that can be read where the rest is to be left out."""
    return readable_sample(data, recipe.data, recipe.data.batch_size) if recipe.data.skip_unreadable else data


def _batch(images: Dataset, recipe: Recipe, training: bool) -> tuple[Tensor, Tensor]:
    settings = replace(recipe.data, workers=0)  # to start processes for one batch would take longer
    inputs, labels = next(iter(make_loader(images, settings, training)))
    return inputs, labels


def _rehearse_training(spec: TrainingSpec, network: nn.Module, batch: Sequence[Tensor]) -> None:
    """The loss of a batch, in training mode, by the objective that the trainer makes."""
    accelerator, execution = spec.accelerator, spec.execution
    student = student_copy(accelerator, network, execution)
    images, labels = (part.to(accelerator.device) for part in batch)
    if spec.teacher is not None:
        teacher = student_copy(accelerator, spec.teacher, Execution(execution.memory_format))
        blocks = distilled_blocks(spec.settings, student, teacher, images.shape[1:], accelerator.device)
        spec = replace(spec, teacher=teacher, blocks=blocks)
    try:
        objective, optimizer = prepare_objective(spec, student)
        make_scheduler(optimizer, spec.settings, steps=1)
        mixer = spec.task.mixer(spec.settings)
        if mixer is not None:
            images, labels = mixer(images, labels)
        objective.train()
        with torch.no_grad():
            objective(images.to(memory_format=execution.memory_format), labels)
            _rehearse_first_size(spec, objective, (images, labels))
    finally:
        accelerator.free_memory()


def _rehearse_first_size(spec: TrainingSpec, objective: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    """Raise RecipeError where the network does not take images of the first epoch's size."""
    images = sized(batch[0], spec.settings, epoch=0)
    if images.shape == batch[0].shape:
        return
    try:
        objective(images.to(memory_format=spec.execution.memory_format), batch[1])
    except (AssertionError, RuntimeError, ValueError) as error:
        raise RecipeError(
            f"first_size={spec.settings.first_size}: the network fails with images of {tuple(images.shape[2:])} pixels "
            f"({error!s:.200}); null, or a size that it takes, is needed"
        ) from error
