"""The main job: a trained network, converted, fine-tuned with the original as teacher, evaluated, saved, reloaded."""

import copy
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn

import surgery
from surgery.training.block_distillation import distilled_blocks
from surgery.training.damage import IMAGES, Judged, measure_damage
from surgery.training.data_loading import calibration_images, labelled_images, make_loader
from surgery.training.datasets import open_dataset
from surgery.training.evidence_images import DEFAULT, evidence_images
from surgery.training.image_dataset import ImageDataset
from surgery.training.image_scan import check_headers, leave_out_unreadable
from surgery.training.job_results import write_results
from surgery.training.job_setup import make_accelerator, make_execution, make_task
from surgery.training.job_stages import Job, Stage
from surgery.training.original_network import find_original
from surgery.training.outcome import Measured, Outcome
from surgery.training.output_folder import opened_output
from surgery.training.recipe import Recipe, TrainSettings
from surgery.training.rehearsal import check_counts, rehearse
from surgery.training.stopping import StopRequests, stop_requests
from surgery.training.tracking import Log
from surgery.transforms.history import history

FEWEST = 8  # images that judge a mimicry


def run(recipe: Recipe) -> list[Measured]:
    """Run a recipe; returns the rows of its table and leaves ``m.safetensors``, ``results.json`` and ``curve.png``.

    While it runs, SIGINT and SIGTERM let a training finish its step and write its state.

    Raises:
        RecipeError, SurgeryError, NonFiniteLossError, BatchTooLargeError, OSError, ValueError: before anything is lost;
            the same command goes on.
        Stopped: as it does after a signal.
    """
    if recipe.threads:
        torch.set_num_threads(recipe.threads)
    with stop_requests() as stop:
        accelerator, output = make_accelerator(recipe), Path(recipe.output)
        data = open_dataset(recipe.data, accelerator.print)
        if not recipe.data.skip_unreadable:
            check_headers(data, accelerator)
        rehearsed = rehearse(accelerator, recipe, data, make_task(recipe, data), make_execution(recipe))
        with opened_output(accelerator, output, recipe.fresh):
            if recipe.data.skip_unreadable:
                data = leave_out_unreadable(data, recipe.data, accelerator, output)
                check_counts(recipe, data)
            job = _begun(recipe, accelerator, data, stop)
            for note in rehearsed.plan.notes:
                job.say(f"note: {note}")
            return _run(job)


def _begun(recipe: Recipe, accelerator: Accelerator, data: ImageDataset, stop: StopRequests) -> Job:
    task, output = make_task(recipe, data), Path(recipe.output)
    log = Log(accelerator, recipe, output / "log.csv")
    test = make_loader(data.test, recipe.data, training=False)
    return Job(recipe, output, accelerator, data, test, task, Outcome(task.metric), log, stop)


def _run(job: Job) -> list[Measured]:
    """The steps of a job, seed after seed."""
    recipe = job.recipe
    original = _original(job, recipe.seed)
    job.measure("original", original)
    _warn_of_chance(job)
    first = _recover(job, original, recipe.seed)
    for seed in range(recipe.seed + 1, recipe.seed + recipe.seeds):
        if recipe.from_scratch:
            original = _original(job, seed)
        _recover(job, original, seed)
    if job.accelerator.is_main_process:
        write_results(job, first)
    job.accelerator.wait_for_everyone()
    job.accelerator.end_training()
    return job.outcome.rows


def _original(job: Job, seed: int) -> nn.Module:
    """The network to convert, of a file, or pretrained, or just initialised; trained here where the recipe says so."""
    recipe = job.recipe
    set_seed(seed)
    original = find_original(recipe, job.data.classes)
    network = original.network.train()
    if not recipe.baseline.epochs:
        job.say(f"original: {original.origin}")
        return network
    job.say(f"original: {original.origin}, trained here for {recipe.baseline.epochs} epochs")
    network, curve = job.train(network, Stage("baseline", recipe.baseline, seed, "train"))
    job.outcome.add_curve("original", curve)
    if job.accelerator.is_main_process:
        surgery.save(network, job.output / "baseline.safetensors", preprocessing=job.preprocessing)
    return network


def _warn_of_chance(job: Job) -> None:
    """Warn where the network of a file is to teach what, as its accuracy says, it has never learnt."""
    recipe, images = job.recipe, len(job.data.test)  # type: ignore[arg-type]
    if (
        not job.accelerator.is_main_process
        or recipe.from_scratch
        or recipe.baseline.epochs
        or recipe.data.has_maps
        or not recipe.finetune.distills
    ):
        return
    accuracy, chance = job.outcome.rows[0].accuracy, 1 / job.data.classes
    if recipe.finetune.epochs and accuracy <= 100 * (chance + 2 * (chance * (1 - chance) / images) ** 0.5):
        warnings.warn(
            f"the original's accuracy of {accuracy:.2f} % is chance for {job.data.classes} classes: it has not learnt "
            "these, or in another order, and will teach that; baseline.epochs=10 trains it first, "
            "finetune.distill_weight=0 and finetune.block_weight=0 do without a teacher",
            stacklevel=2,
        )


def _recover(job: Job, original: nn.Module, seed: int) -> nn.Module:
    """Convert and fine-tune, and the original beside it if it is to be the control; returns the converted network."""
    recipe = job.recipe
    planned = _planned(job, original, seed)
    converted = _converted(job, original, planned, seed)
    title = f" (seed {seed})" if recipe.seeds > 1 else ""
    teacher = _teacher(recipe, original, planned)
    blocks = distilled_blocks(recipe.finetune, converted, teacher, job.image_size, job.accelerator.device)
    if not recipe.finetune.epochs:
        return converted
    name = "finetune" if seed == recipe.seed else f"finetune-{seed}"
    settings = _paced(job, original, converted, seed)
    stage = Stage(name, settings, seed + 1000, f"fine-tune{title}", teacher, blocks)
    tuned, curve = job.train(converted, stage)
    job.measure("after fine-tuning", tuned)
    job.outcome.add_curve("converted", curve)
    if recipe.control:
        stage = replace(stage, name=name.replace("finetune", "control"), label=f"control{title}", teacher=original)
        network, curve = job.train(copy.deepcopy(original), stage)
        job.measure("control: original, fine-tuned", network)
        job.outcome.add_curve("control", curve)
    return tuned


def _paced(job: Job, original: nn.Module, converted: nn.Module, seed: int) -> TrainSettings:
    """The fine-tuning's settings, with the learning rate that the damage asks for where the recipe wants that."""
    settings = job.recipe.finetune
    if not settings.lr_by_damage:
        return settings
    batches = labelled_images(job.data.train, job.recipe.data, IMAGES, seed)
    judged = Judged(original, batches), Judged(converted, batches)
    damage = measure_damage(job.accelerator, job.task, *judged, job.data.classes)
    lr = settings.lr * damage.lr_factor
    job.say(f"surgery and calibration: {damage}; fine-tuning at lr {settings.lr:g} × {damage.lr_factor:.3f} = {lr:.2g}")
    return replace(settings, lr=lr)


def _teacher(recipe: Recipe, original: nn.Module, planned: surgery.Plan) -> nn.Module:
    """The original with its channels in the converted network's order: else what their blocks give does not compare."""
    settings = recipe.surgery
    if settings.match or (settings.match is None and settings.calibrate):
        return surgery.match(original, planned, inside=settings.match == "inside")
    return original


def _planned(job: Job, original: nn.Module, seed: int) -> surgery.Plan:
    recipe, settings = job.recipe, job.recipe.surgery
    images = evidence_images(recipe, job.data.train, seed)
    return surgery.plan(original, settings.method, images=images, **recipe.surgery_arguments)


def _converted(job: Job, original: nn.Module, planned: surgery.Plan, seed: int) -> nn.Module:
    recipe, settings = job.recipe, job.recipe.surgery
    arguments: dict[str, Any] = {"method": planned, "strict": True, "match": settings.match}
    if seed == recipe.seed or not settings.calibrate:
        converted = surgery.convert(original, **arguments)
    if seed == recipe.seed:
        job.measure("after surgery", converted)
        new_transforms = history(converted)[len(history(original)) :]
        sites = {name for transform in new_transforms for name in transform.changed()}
        job.say(f"surgery: {len(sites)} sites converted")
        for note in (decision.note for decision in planned.decisions if decision.note):
            job.say(note)
    if settings.calibrate:
        images = calibration_images(job.data.train, recipe.data, settings.calibrate, seed)
        converted = surgery.convert(original, calibrate=images, images=None, **arguments)
        job.measure("after calibration", converted)
    if recipe.mimic.steps:
        _mimicked(job, converted, _teacher(recipe, original, planned), seed)
    return converted


def _mimicked(job: Job, converted: nn.Module, teacher: nn.Module, seed: int) -> None:
    """Let the converted network mimic the original on the images that calibrated it, or as many as the recipe says."""
    recipe, available = job.recipe, len(job.data.train)  # type: ignore[arg-type]
    count = recipe.mimic.images or recipe.surgery.calibrate or DEFAULT
    judges = max(FEWEST, count // 8)
    images = calibration_images(job.data.train, recipe.data, max(FEWEST, min(count, available - judges)), seed)
    held = [batch[0] for batch in labelled_images(job.data.train, recipe.data, judges, seed)]  # those taken last
    if recipe.surgery.calibrate + judges > available:
        job.say(
            f"mimicry: some of the {judges} images that judge it have been calibrated on, too, and make it look worse; "
            f"surgery.calibrate={max(0, available - judges)} or less of {available} leaves them out"
        )
    report = surgery.mimic(converted, teacher, images, held=held, count=None, seed=seed, **recipe.mimic.options())
    job.say(str(report))
    job.measure("after mimicry", converted)
