"""Copies of a model that hold its structure and other tensors than its own."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from surgery.core.errors import TraceError
from surgery.graph.trees import own_attributes


class CopyError(TraceError):
    """A model holds something that cannot be copied."""


def tensors(model: nn.Module) -> Iterator[Tensor]:
    """Parameters, buffers, and tensors that modules hold as plain attributes (masked or normed weights)."""
    yield from model.parameters()
    yield from model.buffers()
    for module in model.modules():
        yield from (value for value in vars(module).values() if isinstance(value, Tensor))


def copy_with(model: nn.Module, make: Callable[[Tensor], Tensor]) -> nn.Module:
    """A copy of the model whose tensors are made by ``make``; no weight is copied on the way.

    Raises:
        CopyError: the model holds something that cannot be copied.
    """
    memo: dict[int, Any] = {}
    for tensor in tensors(model):
        with torch.no_grad():
            fresh = make(tensor)
        memo[id(tensor)] = nn.Parameter(fresh, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else fresh
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:  # what a model holds may refuse in any way
        raise CopyError(
            f"{type(model).__name__} cannot be copied, and surgery looks at copies: {_culprit(model, memo)} "
            f"({type(error).__name__}: {str(error).partition(chr(10))[0]})"
        ) from error


def meta_copy(model: nn.Module) -> nn.Module:
    """A copy of the model on the meta device."""
    return copy_with(model, lambda tensor: torch.empty_like(tensor, device="meta"))


def copied(model: nn.Module) -> nn.Module:
    """A copy of the model with its weights; raises ValueError where it cannot be copied."""
    try:
        return copy.deepcopy(model)
    except Exception as error:  # what a model holds may refuse in any way
        raise ValueError(f"{type(model).__name__} cannot be copied ({error}): pass inplace=True") from error


def _culprit(model: nn.Module, memo: dict[int, Any]) -> str:
    """Which attribute keeps a model from being copied, as words."""
    for prefix, module in model.named_modules():
        for name, value in own_attributes(module).items():
            try:
                copy.deepcopy(value, dict(memo))
            except Exception:  # as above
                return f"its attribute {f'{prefix}.{name}'.strip('.')!r} is a {type(value).__name__}"
    return f"a part of it is of a kind that refuses, such as {type(model).__name__} itself"
