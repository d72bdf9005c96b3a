"""Jobs without surgery: the baseline, and the original trained as long as what is compared with it."""

import copy
import dataclasses
from pathlib import Path

from accelerate.utils import set_seed
from torch import nn

import surgery
from surgery.training.damage import LEAST
from surgery.training.data_loading import make_loader
from surgery.training.datasets import open_dataset
from surgery.training.job_setup import make_accelerator, make_task
from surgery.training.job_stages import Job, Stage
from surgery.training.original_network import find_original
from surgery.training.outcome import Outcome
from surgery.training.output_folder import opened_output
from surgery.training.recipe import Recipe, TrainSettings
from surgery.training.stopping import StopRequests, stop_requests
from surgery.training.tracking import Log


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
    settings = control_settings(recipe.finetune)
    stage = Stage("control", settings, recipe.seed + 1000, "control", teacher=original)
    network, curve = job.train(copy.deepcopy(original), stage)
    job.measure("after fine-tuning", network)
    job.outcome.add_curve("control", curve)
    return network


def control_settings(settings: TrainSettings) -> TrainSettings:
    """The fine-tuning of a network without surgery: no block was converted, and nothing was lost."""
    lr = settings.lr * LEAST if settings.lr_by_damage else settings.lr
    return dataclasses.replace(settings, block_weight=0.0, lr=lr, lr_by_damage=False)
