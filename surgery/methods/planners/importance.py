"""Which filters to keep when a width shrinks. A criterion maps producing weights to one score per output channel."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from surgery.core.registering import check_name_free

Criterion = Callable[[Sequence[Tensor]], Tensor]
CRITERIA: dict[str, Criterion] = {}


def criterion(name: str) -> Callable[[Criterion], Criterion]:
    """Register a criterion; raises ValueError if the name is taken by another function."""

    def register(function: Criterion) -> Criterion:
        check_name_free(f"importance criterion {name!r}", function, CRITERIA.get(name))
        CRITERIA[name] = function
        return function

    return register


@criterion("l1")
def l1(weights: Sequence[Tensor]) -> Tensor:
    """Sum of absolute weights per filter, over all the layers that write the channel (Li et al. 2017)."""
    return torch.stack([weight.detach().float().abs().flatten(1).sum(1) for weight in weights]).sum(0)


def strongest(scores: Tensor, count: int, groups: int = 1) -> list[int]:
    """Indices, ascending, of the ``count`` highest scores, as many from each of ``groups`` equal blocks; of equal
    scores the first."""
    blocks = scores.reshape(groups, -1)
    best = blocks.sort(dim=1, descending=True, stable=True).indices[:, : count // groups].sort(dim=1).values
    offsets = torch.arange(groups, device=best.device)[:, None] * blocks.shape[1]
    return (best + offsets).flatten().tolist()
