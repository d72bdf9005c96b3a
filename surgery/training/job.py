"""The main job: a trained network, converted, fine-tuned with the original as teacher, evaluated, saved, reloaded."""

import copy
import shutil
import uuid
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object, set_seed
from torch import nn
from torch.utils.data import DataLoader

import surgery
from surgery.training.block_distillation import distilled_blocks
from surgery.training.classification_task import ImageClassification
from surgery.training.damage import measure_damage
from surgery.training.data_loading import calibration_images, make_loader
from surgery.training.datasets import ImageDataset, open_dataset
from surgery.training.image_scan import DECODED, check_headers, leave_out_unreadable
from surgery.training.main_process import on_main
from surgery.training.original_network import find_original
from surgery.training.outcome import History, Measured, Outcome, plot_curves
from surgery.training.output_lock import locked
from surgery.training.precision import precision_here
from surgery.training.recipe import Recipe, RecipeError, TrainSettings
from surgery.training.rehearsal import check_counts, rehearse
from surgery.training.segmentation_task import SemanticSegmentation
from surgery.training.stopping import StopRequests, stop_requests
from surgery.training.task import Task, watched
from surgery.training.tracking import Log, check_tracker
from surgery.training.trainer import BatchTooLargeError, Execution, train
from surgery.training.training_state import TrainingState
from surgery.transforms.edit import history
from surgery.vision.preprocessing import Preprocessing
from surgery.vision.segmentation import View

INDECISIVE = ("keep", "save_minutes", "workers")  # a training goes on with others


@dataclass
class Job:
    """What the steps of a job share."""

    recipe: Recipe
    output: Path
    accelerator: Accelerator
    data: ImageDataset
    test: DataLoader
    task: Task
    outcome: Outcome
    log: Log
    stop: StopRequests

    @property
    def execution(self) -> Execution:
        return make_execution(self.recipe)

    @property
    def image_size(self) -> tuple[int, int, int]:
        """(C, H, W) of training images, at which costs are counted."""
        return 3, self.recipe.data.image_size, self.recipe.data.image_size

    def say(self, text: str) -> None:
        self.accelerator.print(text)

    def measure(self, stage: str, model: nn.Module) -> None:
        accuracy = self.task.evaluate(self.accelerator, model.to(self.accelerator.device), self.test)
        self.outcome.add(stage, accuracy, surgery.cost(model, self.image_size))

    def train(
        self,
        network: nn.Module,
        settings: TrainSettings,
        stage: str,
        seed: int,
        label: str,
        teacher: nn.Module | None = None,
        blocks: Sequence[str] = (),
    ) -> tuple[nn.Module, History]:
        """Train, or go on; the state's folder is named after the stage."""
        state = self._state(stage, seed, settings)
        size, accumulate = settings.batch_size or self.recipe.data.batch_size, settings.accumulate
        while True:
            fitting = state.fitting_batch(size, accumulate)
            try:
                fitted = replace(settings, **cast(Any, fitting))
                return self._train(network, fitted, state, stage, seed, label, teacher, blocks)
            except BatchTooLargeError:
                size, accumulate = fitting["batch_size"] // 2, fitting["accumulate"] * 2
                # a batch that has fitted before is not what is too large; what was learnt with it is kept
                if not self.recipe.find_batch_size or size < 2 or self.accelerator.num_processes > 1 or state.begun:
                    raise
            self.say(f"{label}: too large a batch; going on with {size} images, {accumulate} batches a step")
            state.remember_batch(size, accumulate)
            torch.cuda.empty_cache()  # the error is gone, and with it the activations that it held

    def _train(
        self,
        network: nn.Module,
        settings: TrainSettings,
        state: TrainingState,
        stage: str,
        seed: int,
        label: str,
        teacher: nn.Module | None,
        blocks: Sequence[str],
    ) -> tuple[nn.Module, History]:
        if teacher is not None:
            layout = self.execution.memory_format
            teacher = copy.deepcopy(teacher).to(memory_format=layout) if settings.distills else None

        def reached(trained: nn.Module, history: History) -> None:
            self.log.write(stage, history)
            if settings.keep_best and stage == "finetune":
                self._keep_best(network, trained, history)

        return train(
            self.accelerator,
            network,
            (make_loader(self.data.train, self.recipe.data, True, settings.batch_size), self.test),
            self.task,
            settings,
            state,
            teacher=teacher,
            blocks=blocks,
            execution=self.execution,
            seed=seed,
            label=label,
            stop=self.stop,
            reached=reached,
        )

    def _keep_best(self, network: nn.Module, trained: nn.Module, history: History) -> None:
        """Write best.safetensors where the last epoch is the best so far."""
        accuracies = [row["accuracy"] for row in history]
        if accuracies[-1] > max(accuracies[:-1], default=-1.0) and self.accelerator.is_main_process:
            best = copy.deepcopy(network)
            best.load_state_dict(trained.state_dict())
            surgery.save(best, self.output / "best.safetensors", preprocessing=_preprocessing(self))

    def _state(self, stage: str, seed: int, settings: TrainSettings) -> TrainingState:
        """The state of one training, tied to the settings that decide its outcome."""
        recipe = asdict(self.recipe)
        parts: tuple[str, ...] = ("precision", "sync_bn", "data", "segmentation", "model", "baseline")
        if stage != "baseline":
            parts += ("surgery", "finetune")
        decisive = {"seed": seed} | {part: _without(recipe[part], INDECISIVE) for part in parts}
        return TrainingState(self.output / "state" / stage, decisive, settings.keep)


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
        with _opened_output(accelerator, output, recipe.fresh):
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
        _write(job, first)
    job.accelerator.wait_for_everyone()
    job.accelerator.end_training()
    return job.outcome.rows


@contextmanager
def _opened_output(accelerator: Accelerator, output: Path, fresh: bool) -> Iterator[None]:
    """The job's folder, for it alone.

    Raises:
        OutputInUseError: another job writes there.
        RecipeError: it cannot be made or written to, or a process, on whatever machine, does not see what the main one
            writes there.
    """
    with ExitStack() as stack:
        on_main(accelerator, lambda: _take(stack, output, fresh))
        _check_seen_by_all(accelerator, output)
        yield


def _take(stack: ExitStack, output: Path, fresh: bool) -> None:
    """Make the folder, lock it, and clear it where the job starts over."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        stack.enter_context(locked(output))
        if fresh:
            _clear(output)
    except OSError as error:
        raise RecipeError(f"output={output}: {error.strerror or error}; a folder to write to is needed") from error


def _check_seen_by_all(accelerator: Accelerator, output: Path) -> None:
    mark = output / f"seen-by-all-{broadcast_object_list([uuid.uuid4().hex])[0]}"
    on_main(accelerator, mark.touch)
    blind = [number for number, seen in enumerate(gather_object([mark.exists()])) if not seen]
    on_main(accelerator, mark.unlink)
    if blind:
        raise RecipeError(
            f"output={output}: process {blind[0]} does not see what process 0 writes there; "
            "it must be one folder that all machines share, for a job goes on from the state in it"
        )


def make_accelerator(recipe: Recipe) -> Accelerator:
    """What runs the recipe's trainings; raises RecipeError where its tracker is not installed."""
    check_tracker(recipe.track)  # before Accelerate warns of it
    precision = precision_here(recipe.precision)
    return Accelerator(mixed_precision=precision, log_with=recipe.track, project_dir=recipe.output)


def make_execution(recipe: Recipe) -> Execution:
    """How the recipe's networks are run."""
    layout = torch.channels_last if recipe.channels_last else torch.preserve_format
    return Execution(layout, recipe.sync_bn, recipe.compile, recipe.checkpoint_activations)


def make_task(recipe: Recipe, data: ImageDataset) -> Task:
    """What networks are trained for on such data."""
    if not recipe.data.segments:
        return ImageClassification(data.classes)
    pixels = recipe.segmentation
    return SemanticSegmentation(pixels.auxiliary_weight, View(pixels.window, pixels.overlap, pixels.flip))


def _without(settings: Any, keys: Sequence[str]) -> Any:
    if not isinstance(settings, dict):
        return settings
    return {key: value for key, value in settings.items() if key not in keys}


def _clear(output: Path) -> None:
    """Remove what earlier runs of a job left, and nothing else."""
    shutil.rmtree(output / "state", ignore_errors=True)
    for name in (
        "baseline.safetensors",
        "m.safetensors",
        "best.safetensors",
        "results.json",
        "log.csv",
        "curve.png",
        DECODED,
    ):
        (output / name).unlink(missing_ok=True)


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
    network, curve = job.train(network, recipe.baseline, "baseline", seed, "train")
    job.outcome.add_curve("original", curve)
    if job.accelerator.is_main_process:
        surgery.save(network, job.output / "baseline.safetensors", preprocessing=_preprocessing(job))
    return network


def _warn_of_chance(job: Job) -> None:
    """Warn where the network of a file is to teach what, as its accuracy says, it has never learnt."""
    recipe, images = job.recipe, len(job.data.test)  # type: ignore[arg-type]
    if (
        not job.accelerator.is_main_process
        or recipe.from_scratch
        or recipe.baseline.epochs
        or recipe.data.segments
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
    converted = _converted(job, original, seed)
    title = f" (seed {seed})" if recipe.seeds > 1 else ""
    teacher = _teacher(recipe, original)
    blocks = distilled_blocks(recipe.finetune, converted, teacher, job.image_size, job.accelerator.device)
    stage = "finetune" if seed == recipe.seed else f"finetune-{seed}"
    if not recipe.finetune.epochs:
        return converted
    settings = _paced(job, original, converted, seed)
    tuned, curve = job.train(converted, settings, stage, seed + 1000, f"fine-tune{title}", teacher, blocks)
    job.measure("after fine-tuning", tuned)
    job.outcome.add_curve("converted", curve)
    if recipe.control:
        network, stage = copy.deepcopy(original), stage.replace("finetune", "control")
        network, curve = job.train(network, settings, stage, seed + 1000, f"control{title}", original, blocks)
        job.measure("control: original, fine-tuned", network)
        job.outcome.add_curve("control", curve)
    return tuned


def _paced(job: Job, original: nn.Module, converted: nn.Module, seed: int) -> TrainSettings:
    """The fine-tuning's settings, with the learning rate that the damage asks for where the recipe wants that."""
    settings = job.recipe.finetune
    if not settings.lr_by_damage:
        return settings
    damage = measure_damage(job.accelerator, original, converted, job.task, job.data, job.recipe.data, seed)
    lr = settings.lr * damage.lr_factor
    job.say(f"surgery and calibration: {damage}; fine-tuning at lr {settings.lr:g} × {damage.lr_factor:.3f} = {lr:.2g}")
    return replace(settings, lr=lr)


def _teacher(recipe: Recipe, original: nn.Module) -> nn.Module:
    """The original with its channels in the converted network's order: else what their blocks give does not compare."""
    wanted = recipe.surgery
    if wanted.match or (wanted.match is None and wanted.calibrate):
        return surgery.match(original, wanted.method, inside=wanted.match == "inside", **recipe.surgery_arguments)
    return original


def _converted(job: Job, original: nn.Module, seed: int) -> nn.Module:
    recipe, wanted = job.recipe, job.recipe.surgery
    arguments = {**recipe.surgery_arguments, "method": wanted.method, "strict": True, "match": wanted.match}
    if seed == recipe.seed or not wanted.calibrate:
        converted = surgery.convert(original, **arguments)
    if seed == recipe.seed:
        job.measure("after surgery", converted)
        made = history(converted)[len(history(original)) :]
        job.say(f"surgery: {sum(bool(edit.site) for edit in made)} sites converted")
    if wanted.calibrate:
        images = calibration_images(job.data.train, recipe.data, wanted.calibrate, seed)
        converted = surgery.convert(original, calibrate=images, images=None, **arguments)
        job.measure("after calibration", converted)
    return converted


def _write(job: Job, tuned: nn.Module) -> None:
    path, outcome = job.output / "m.safetensors", job.outcome
    surgery.save(tuned, path, preprocessing=_preprocessing(job))
    same = _same_logits(job, tuned, surgery.load(path, job.accelerator.device))
    plot_curves(job.output / "curve.png", outcome, job.recipe.title)
    outcome.write_json(
        job.output / "results.json",
        recipe=job.recipe.to_dict(),
        precision=job.accelerator.mixed_precision,
        reloaded_identical=same,
    )
    job.say("\n" + outcome.table())
    job.say(f"\n{path} reloaded: logits {'identical' if same else 'DIFFERENT'} on {len(job.data.test)} test images")  # type: ignore[arg-type]
    job.say(f"curve: {job.output / 'curve.png'}   numbers: {job.output / 'results.json'}")
    if not same:
        raise surgery.errors.CheckpointError(f"{path} does not give the logits of the network that was saved")


def _preprocessing(job: Job) -> Preprocessing:
    data, known = job.recipe.data, job.data
    form = {"ignore": data.ignore, "colours": known.colours} if data.segments else {}
    return Preprocessing(
        job.image_size, data.mean, data.std, data.crop_pct, data.interpolation, known.names, **cast(Any, form)
    )


def _same_logits(job: Job, one: nn.Module, two: nn.Module) -> bool:
    device = job.accelerator.device
    with torch.inference_mode():
        images = (batch[0].to(device) for batch in watched(job.test, job.accelerator))
        return all(torch.equal(one(each), two(each)) for each in images)
