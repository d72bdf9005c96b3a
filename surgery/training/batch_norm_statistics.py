"""BatchNorm's running statistics."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from surgery.core.batch_norms import batch_norms_of


def batch_norms(model: nn.Module) -> list[Any]:
    """Those of a network that keep running statistics."""
    return [norm for norm in batch_norms_of(model).values() if norm.num_batches_tracked is not None]


@contextmanager
def frozen_statistics(norms: Sequence[Any]) -> Iterator[None]:
    """What ``norms`` compute while this is entered does not count: activations computed again are no further batch."""
    before = [(norm, norm.momentum, norm.num_batches_tracked.clone()) for norm in norms]
    try:
        for norm in norms:
            norm.momentum = 0.0
        yield
    finally:
        for norm, momentum, count in before:
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(count)
