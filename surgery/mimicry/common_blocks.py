"""The blocks that two networks have in common, and what they give."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from surgery.core.eval_mode import eval_mode
from surgery.transforms.changed import changed_layers
from surgery.transforms.reorder import check_same_order


def common_blocks(student: nn.Module, teacher: nn.Module, images: Tensor) -> list[str]:
    """The smallest modules around each changed layer that give one map, of the same shape in both networks.

    Changed is what the student's history says was replaced, inserted or resized.

    Args:
        images: (N, C, H, W); both networks run once on them, in eval mode.

    Returns:
        Their names; none where all of the feature maps around changed layers have other shapes.

    Raises:
        ValueError: nothing was converted, or the networks have their channels in different orders.
    """
    check_same_order(student, teacher)
    layers = changed_layers(student)
    if not layers:
        raise ValueError(f"{type(student).__name__} has no converted layer, and so no block around one")
    parents = {name: [name.rsplit(".", n)[0] for n in range(1, name.count(".") + 1)] for name in layers}
    teacher_modules = {name for name, _ in teacher.named_modules()}
    shared_parents = sorted({parent for candidates in parents.values() for parent in candidates} & teacher_modules)
    with (
        torch.no_grad(),
        recorded_outputs(student, shared_parents) as student_outputs,
        recorded_outputs(teacher, shared_parents) as teacher_outputs,
    ):
        for network in (student, teacher):
            with eval_mode(network):
                network(images)
    matching = {
        name for name in shared_parents if _shapes(student_outputs[name]) == _shapes(teacher_outputs[name]) != []
    }
    smallest = {
        next((parent for parent in candidates if parent in matching), "") for candidates in parents.values()
    } - {""}
    return sorted(name for name in smallest if not any(name.startswith(f"{other}.") for other in smallest))


def _shapes(outputs: list[Any]) -> list[torch.Size]:
    """The shape of the only output, or nothing where there are several or others than tensors."""
    return [outputs[0].shape] if len(outputs) == 1 and isinstance(outputs[0], Tensor) else []


@contextmanager
def recorded_outputs(network: nn.Module, names: Sequence[str]) -> Iterator[dict[str, list[Any]]]:
    """What the named modules return while this is entered, call after call."""
    outputs: dict[str, list[Any]] = {name: [] for name in names}
    handles = [
        network.get_submodule(name).register_forward_hook(
            lambda _, args, output, name=name: outputs[name].append(output)
        )
        for name in names
    ]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()
