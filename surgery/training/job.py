"""The main job: a trained network, converted, fine-tuned with the original as teacher, evaluated, saved, reloaded."""

import copy
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn
from torch.utils.data import DataLoader

import surgery
from surgery.training.data import DataSet, calibration_images, make_loader, open_data
from surgery.training.outcome import Measured, outcome_table, plot_curves, write_json
from surgery.training.recipe import Recipe
from surgery.training.state import TrainingState
from surgery.training.trainer import evaluate, train


@dataclass
class Job:
    """What the steps of a job share."""

    recipe: Recipe
    output: Path
    accelerator: Accelerator
    data: DataSet
    loaders: tuple[DataLoader, DataLoader]

    def say(self, text: str) -> None:
        self.accelerator.print(text)

    def measure(self, stage: str, model: nn.Module) -> Measured:
        accuracy = evaluate(self.accelerator, model.to(self.accelerator.device), self.loaders[1], self.data.classes)
        size = self.recipe.data.image_size
        spent = surgery.cost(model, (3, size, size))
        return Measured(stage, accuracy, spent.macs, spent.params)


def run(recipe: Recipe) -> list[Measured]:
    """Run a recipe; returns the rows of its table and leaves ``m.safetensors``, ``results.json`` and ``curve.png``.

    Raises:
        RecipeError, SurgeryError, NonFiniteLossError, OSError: before anything is lost; the same command goes on.
    """
    if recipe.threads:
        torch.set_num_threads(recipe.threads)
    output = Path(recipe.output)
    if recipe.fresh and output.exists():
        _clear(output)
    output.mkdir(parents=True, exist_ok=True)
    data = open_data(recipe.data)
    loaders = (make_loader(data.train, recipe.data, True), make_loader(data.test, recipe.data, False))
    job = Job(recipe, output, Accelerator(mixed_precision=recipe.precision), data, loaders)
    original, curves = _original(job)
    return _recover(job, original, curves)


def _clear(output: Path) -> None:
    """Remove what earlier runs of a job left, and nothing else."""
    shutil.rmtree(output / "state", ignore_errors=True)
    for name in ("baseline.safetensors", "m.safetensors", "results.json", "curve.png"):
        (output / name).unlink(missing_ok=True)


def _state(job: Job, stage: str) -> TrainingState:
    """The state of one training, tied to the settings that decide its outcome."""
    recipe = asdict(job.recipe)
    parts: tuple[str, ...] = ("seed", "precision", "data", "model", "baseline")
    if stage == "finetune":
        parts += ("surgery", "finetune")
    return TrainingState(job.output / "state" / stage, {part: recipe[part] for part in parts})


def _original(job: Job) -> tuple[nn.Module, dict[str, list[dict[str, Any]]]]:
    """The network to convert: from the recipe's checkpoint, or pretrained, or trained here."""
    model = job.recipe.model
    if model.checkpoint:
        job.say(f"original: {model.checkpoint}")
        return surgery.load(model.checkpoint), {}
    set_seed(job.recipe.seed)
    network = surgery.create(model.name, pretrained=model.pretrained, **model.kwargs)
    if model.pretrained:
        job.say(f"original: {model.name}, pretrained")
        return network, {}
    job.say(f"original: {model.name}, trained here for {job.recipe.baseline.epochs} epochs")
    recipe = job.recipe
    network, rows = train(
        job.accelerator,
        network,
        job.loaders,
        job.data.classes,
        recipe.baseline,
        _state(job, "baseline"),
        seed=recipe.seed,
        label="train",
    )
    if job.accelerator.is_main_process:
        surgery.save(network, job.output / "baseline.safetensors")
    return network, {"original": rows}


def _recover(job: Job, original: nn.Module, curves: dict[str, list[dict[str, Any]]]) -> list[Measured]:
    """Convert, fine-tune, and write everything down."""
    recipe = job.recipe
    wanted = recipe.surgery
    arguments = {"zeta": wanted.zeta, "mode": wanted.mode, **wanted.options}
    converted = surgery.convert(original, wanted.method, strict=True, **arguments)
    rows = [job.measure("original", original), job.measure("after surgery", converted)]
    if wanted.calibrate:
        images = calibration_images(job.data.train, recipe.data, wanted.calibrate, recipe.seed)
        converted = surgery.convert(original, wanted.method, strict=True, calibrate=images, **arguments)
        rows.append(job.measure("after calibration", converted))
    job.say(f"surgery: {len(surgery.plan(original, wanted.method, **arguments).sites)} sites converted")
    tuned, history = train(
        job.accelerator,
        converted,
        job.loaders,
        job.data.classes,
        recipe.finetune,
        _state(job, "finetune"),
        teacher=copy.deepcopy(original),
        seed=recipe.seed + 1000,
        label="fine-tune",
    )
    rows.append(job.measure("after fine-tuning", tuned))
    if job.accelerator.is_main_process:
        _write(job, tuned, rows, curves | {"converted": history})
    job.accelerator.wait_for_everyone()
    return rows


def _write(job: Job, tuned: nn.Module, rows: list[Measured], curves: dict[str, list[dict[str, Any]]]) -> None:
    path = job.output / "m.safetensors"
    surgery.save(tuned, path)
    same = _same_logits(job, tuned, surgery.load(path, job.accelerator.device))
    plot_curves(job.output / "curve.png", curves, rows)
    write_json(job.output / "results.json", rows, curves=curves, recipe=job.recipe.to_dict(), reloaded_identical=same)
    job.say("\n" + outcome_table(rows))
    job.say(f"\n{path} reloaded: logits {'identical' if same else 'DIFFERENT'} on {len(job.data.test)} test images")  # type: ignore[arg-type]
    job.say(f"curve: {job.output / 'curve.png'}   numbers: {job.output / 'results.json'}")
    if not same:
        raise surgery.errors.CheckpointError(f"{path} does not give the logits of the network that was saved")


def _same_logits(job: Job, one: nn.Module, two: nn.Module) -> bool:
    device = job.accelerator.device
    with torch.inference_mode():
        return all(torch.equal(one(images.to(device)), two(images.to(device))) for images, _ in job.loaders[1])
