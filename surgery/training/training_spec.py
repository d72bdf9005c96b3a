"""What one training is of: its loss, its settings, its teacher, and how its networks are run."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from timm.layers import convert_sync_batchnorm
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from surgery.core.batch_norms import batch_norms_of
from surgery.training.recipe import RecipeError, TrainSettings
from surgery.training.task import Task


@dataclass(frozen=True)
class Execution:
    """How networks are run (keys of a recipe)."""

    memory_format: torch.memory_format = torch.preserve_format
    sync_bn: bool = False
    compile: bool = False
    checkpoint_activations: bool = False


@dataclass(frozen=True)
class TrainingSpec:
    """All that a training is made from but the network, the images and the state.

    Attributes:
        teacher: of the distillation, where ``settings`` ask for one.
        blocks: names of the modules whose outputs are matched
            (:func:`surgery.mimicry.common_blocks.common_blocks`).
        seed: of the order of images, their augmentation, and the random numbers of steps.
        label: of the progress bar and of messages.
    """

    accelerator: Accelerator
    task: Task
    settings: TrainSettings
    teacher: nn.Module | None = None
    blocks: Sequence[str] = ()
    execution: Execution = Execution()
    seed: int = 0
    label: str = "train"


def check_sharding(accelerator: Accelerator, settings: TrainSettings) -> None:
    """Raise RecipeError for what needs whole weights where FSDP shards them."""
    if accelerator.distributed_type != DistributedType.FSDP:
        return
    for key in ("ema_decay", "distill_weight", "block_weight", "keep_best", "dynamic_weight_decay"):
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
    own = next((name for name, norm in batch_norms_of(model).items() if not isinstance(norm, _BatchNorm)), None)
    if execution.sync_bn and accelerator.num_processes > 1 and own is not None:
        raise RecipeError(f"sync_bn=true: {own!r} normalises several maps and cannot be synchronised; false is needed")


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
