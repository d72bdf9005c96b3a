"""What attention layers that start as the identity share."""

from collections.abc import Callable

import torch
from torch import Tensor, nn


class NeutralSigmoid(nn.Module):
    """2 · σ(x), which is 1 where a new layer's logits are 0; the published gate, σ, would halve what it meets."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * torch.sigmoid(x)


def built_alike(build: Callable[[], nn.Module]) -> nn.Module:
    """A module with the same random numbers whenever it is built; the process's own generator stays as it is."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build()


def silence(layer: nn.Module) -> None:
    """Let a layer with weight and bias give zero."""
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.zero_()
