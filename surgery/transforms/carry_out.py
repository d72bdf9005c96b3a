"""Carry out transforms on a model, in place."""

from collections.abc import Iterable

from torch import nn

from surgery.transforms.history import remember
from surgery.transforms.original_weights import accept_original_weights
from surgery.transforms.transform import Transform

KeptOutputs = dict[str, list[int]]


def apply(model: nn.Module, transforms: Iterable[Transform], *, choosing: bool = False) -> KeptOutputs:
    """Carry out transforms in place and write them into the model's history, also where a later one fails.

    Args:
        choosing: let each choose by the weights that the model has; without it the tensors are then to be loaded.

    Returns:
        Of the layers that lost outputs, which of those that they had at first they still have.

    Raises:
        SurgeryError: the model is not the one that the transforms were planned for.
    """
    accept_original_weights(model)
    kept: KeptOutputs = {}
    done: list[Transform] = []
    try:
        for transform in transforms:
            choice = transform.choose(model) if choosing else None
            transform.apply(model, choice)
            done.append(transform)
            for name, outputs in transform.kept_outputs(choice).items():
                kept[name] = [kept[name][index] for index in outputs] if name in kept else outputs
    finally:
        remember(model, *done)  # once: a history that grows by one is copied each time
    return kept
