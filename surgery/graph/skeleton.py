"""Copies of a model that hold its structure and no weights."""

import copy
from typing import Any

import torch
from torch import nn


def meta_copy(model: nn.Module) -> nn.Module:
    """A copy of the model on the meta device, made without copying a weight."""
    memo: dict[int, Any] = {}
    for tensor in [*model.parameters(), *model.buffers()]:
        fresh = torch.empty_like(tensor, device="meta")
        memo[id(tensor)] = nn.Parameter(fresh, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else fresh
    return copy.deepcopy(model, memo)
