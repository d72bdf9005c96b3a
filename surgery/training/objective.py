"""What a training minimises: timm's task with its optimiser and scheduler."""

from typing import Any, cast

import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.task import ClassificationTask
from torch import nn

from surgery.training.block_distillation import distillation_options
from surgery.training.dynamic_weight_decay import scaling_norms
from surgery.training.recipe import RecipeError, TrainSettings
from surgery.training.training_spec import TrainingSpec


def prepare_objective(spec: TrainingSpec, student: nn.Module) -> tuple[Any, torch.optim.Optimizer]:
    """The loss, with its network and optimiser, wrapped for as many processes as there are."""
    accelerator, settings, task, teacher = spec.accelerator, spec.settings, spec.task, spec.teacher
    optimizer = make_optimizer(student, settings)
    objective: Any
    criterion = task.criterion(settings)
    if teacher is None or not settings.distills:
        objective = ClassificationTask(student, criterion, device=accelerator.device, verbose=False)
    else:
        teacher = accelerator.prepare_model(teacher.eval().requires_grad_(False), evaluation_mode=True)
        options = distillation_options(settings, accelerator)
        objective = task.distillation(student, teacher, blocks=spec.blocks, criterion=criterion, **options)
    if settings.ema_decay:
        objective.setup_ema(decay=settings.ema_decay, use_warmup=True)
    objective.trainable_module, optimizer = accelerator.prepare(student, optimizer)
    return objective, optimizer


def make_optimizer(network: nn.Module, settings: TrainSettings) -> torch.optim.Optimizer:
    """timm's optimiser; raises RecipeError where it cannot be made here.

    Scales of BatchNorms that dynamic weight decay acts on have no other.
    """
    options: dict[str, Any] = {} if settings.betas is None else {"betas": settings.betas}
    if settings.dynamic_weight_decay and settings.decay_all:
        options["param_group_fn"] = lambda module: _without_scales(module, settings.weight_decay)
    try:
        optimizer = create_optimizer_v2(
            network,
            opt=settings.optimizer,
            lr=settings.lr,
            weight_decay=settings.weight_decay,
            momentum=0.9,
            filter_bias_and_bn=not settings.decay_all,
            **options,
        )
    except (AssertionError, ImportError, TypeError, ValueError) as error:  # of a GPU or a package that is lacking
        raise RecipeError(f"optimizer={settings.optimizer!r}, lr={settings.lr}: {error}") from error
    if settings.betas is not None and "betas" not in optimizer.defaults:  # timm leaves out what one does not know
        raise RecipeError(
            f"betas={list(settings.betas)}: optimizer={settings.optimizer!r} has none; adam and its kin do"
        )
    return optimizer


def _without_scales(network: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Groups of parameters: all but BatchNorms' scales, and these, which do not decay."""
    scales = [norm.weight for norm in scaling_norms(network).values() if norm.weight.requires_grad]
    own = {id(scale) for scale in scales}
    others = [p for p in network.parameters() if p.requires_grad and id(p) not in own]
    return [{"params": others, "weight_decay": weight_decay}, {"params": scales, "weight_decay": 0.0}]


def make_scheduler(optimizer: torch.optim.Optimizer, settings: TrainSettings, steps: int) -> Any:
    """timm's scheduler, for so many steps an epoch; ``linear`` is a straight line from the end of warming up to 0."""
    epochs, warmup, linear = settings.epochs, settings.warmup_epochs, settings.scheduler == "linear"
    return create_scheduler_v2(
        optimizer,
        "poly" if linear else settings.scheduler,
        num_epochs=cast(Any, max(epochs - warmup, 1 / steps) if linear else epochs),
        decay_rate={"linear": 1.0, "poly": settings.power}.get(settings.scheduler, 0.1),
        warmup_epochs=cast(Any, warmup),  # parts of one too: it counts updates
        warmup_prefix=linear,  # the others begin to decay while they warm up
        warmup_lr=settings.lr / 100,
        step_on_epochs=False,
        updates_per_epoch=steps,
    )[0]
