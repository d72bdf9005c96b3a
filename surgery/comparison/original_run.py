"""Jobs without surgery: the baseline, and the original trained as long as what is compared with it."""

import copy
import dataclasses
from pathlib import Path

from accelerate.utils import set_seed
from torch import nn

import surgery
from surgery.training.damage import IMAGES, LEAST, Judged, measure_damage
from surgery.training.data_loading import labelled_images, make_loader
from surgery.training.datasets import open_dataset
from surgery.training.job_setup import make_accelerator, make_task
from surgery.training.job_stages import Job, Stage
from surgery.training.original_network import find_original
from surgery.training.outcome import Outcome
from surgery.training.output_folder import opened_output
from surgery.training.recipe import Recipe, TrainSettings
from surgery.training.stopping import StopRequests, stop_requests
from surgery.training.tracking import Log
from surgery.vision.preprocessing import MEMORY, Preprocessing


def run_original(recipe: Recipe) -> None:
    """Train the original by ``baseline``, then by ``finetune`` with its earlier self as teacher; each if it has epochs.

    The folder receives ``results.json`` and ``m.safetensors``, whatever was trained.

    Raises:
        RecipeError, SurgeryError, OSError, ValueError, Stopped: as :func:`surgery.training.run`.
    """
    with stop_requests() as stop:
        job = _job(recipe, stop)
        with opened_output(job.accelerator, job.output, recipe.fresh):
            network = _tuned(job, _trained(job))
            surgery.save(network, job.output / "m.safetensors", preprocessing=job.preprocessing)
            job.outcome.write_json(job.output / "results.json", recipe=recipe.to_dict())


def _job(recipe: Recipe, stop: StopRequests) -> Job:
    accelerator, output = make_accelerator(recipe), Path(recipe.output)
    data = open_dataset(recipe.data, accelerator.print)
    task, test = make_task(recipe, data), make_loader(data.test, recipe.data, training=False)
    log = Log(accelerator, recipe, output / "log.csv")
    return Job(recipe, output, accelerator, data, test, task, Outcome(task.metric), log, stop)


def _trained(job: Job) -> nn.Module:
    recipe = job.recipe
    set_seed(recipe.seed)
    network = find_original(recipe, job.data.classes).network.train()
    if recipe.baseline.epochs:
        network, curve = job.train(network, Stage("baseline", recipe.baseline, recipe.seed, "train"))
        job.outcome.add_curve("original", curve)
    job.measure("original", network)
    return network


def _tuned(job: Job, original: nn.Module) -> nn.Module:
    recipe = job.recipe
    if not recipe.finetune.epochs:
        return original
    settings = control_settings(recipe.finetune, _lr_factor(job, original))
    stage = Stage("control", settings, recipe.seed + 1000, "control", teacher=original)
    network, curve = job.train(copy.deepcopy(original), stage)
    job.measure("after fine-tuning", network)
    job.outcome.add_curve("control", curve)
    return network


def control_settings(settings: TrainSettings, lr_factor: float = LEAST) -> TrainSettings:
    """The fine-tuning of a network without surgery: no block was converted.

    Args:
        lr_factor: by which the rate is multiplied where the damage decides it; default: nothing was lost.
    """
    lr = settings.lr * lr_factor if settings.lr_by_damage else settings.lr
    return dataclasses.replace(settings, block_weight=0.0, lr=lr, lr_by_damage=False)


def _lr_factor(job: Job, original: nn.Module) -> float:
    """What smaller images than those that the original was trained on have cost asks for."""
    trained: Preprocessing | None = getattr(original, MEMORY, None)
    data = job.recipe.data
    if not job.recipe.finetune.lr_by_damage or trained is None or trained.size == job.image_size:
        return LEAST
    whole = dataclasses.replace(data, image_size=trained.size[1])
    before = labelled_images(open_dataset(whole).train, whole, IMAGES, job.recipe.seed)
    after = labelled_images(job.data.train, data, IMAGES, job.recipe.seed)
    judged = Judged(original, before), Judged(original, after)
    damage = measure_damage(job.accelerator, job.task, *judged, job.data.classes)
    job.say(f"images of {data.image_size} pixels: {damage}; learning rate × {damage.lr_factor:.3f}")
    return damage.lr_factor
