"""Copies of a model that hold its structure and other tensors than its own."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn


def tensors(model: nn.Module) -> Iterator[Tensor]:
    """Parameters, buffers, and tensors that modules hold as plain attributes (masked or normed weights)."""
    yield from model.parameters()
    yield from model.buffers()
    for module in model.modules():
        yield from (value for value in vars(module).values() if isinstance(value, Tensor))


def copy_with(model: nn.Module, make: Callable[[Tensor], Tensor]) -> nn.Module:
    """A copy of the model whose tensors are made by ``make``; no weight is copied on the way."""
    memo: dict[int, Any] = {}
    for tensor in tensors(model):
        with torch.no_grad():
            fresh = make(tensor)
        memo[id(tensor)] = nn.Parameter(fresh, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else fresh
    return copy.deepcopy(model, memo)


def meta_copy(model: nn.Module) -> nn.Module:
    """A copy of the model on the meta device."""
    return copy_with(model, lambda tensor: torch.empty_like(tensor, device="meta"))


def copied(model: nn.Module) -> nn.Module:
    """A copy of the model with its weights; raises ValueError where it cannot be copied."""
    try:
        return copy.deepcopy(model)
    except RuntimeError as error:
        raise ValueError(f"{type(model).__name__} cannot be copied ({error}): pass inplace=True") from error
