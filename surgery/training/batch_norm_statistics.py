"""BatchNorm's running statistics."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def batch_norms(model: nn.Module) -> list[_BatchNorm]:
    """Those of a network that keep running statistics."""
    return [m for m in model.modules() if isinstance(m, _BatchNorm) and m.num_batches_tracked is not None]


@contextmanager
def frozen_statistics(norms: Sequence[_BatchNorm]) -> Iterator[None]:
    """What ``norms`` compute while this is entered does not count: activations computed again are no further batch."""
    before = [(norm, norm.momentum, norm.num_batches_tracked.clone()) for norm in norms]  # type: ignore[union-attr]
    try:
        for norm in norms:
            norm.momentum = 0.0
        yield
    finally:
        for norm, momentum, count in before:
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(count)  # type: ignore[union-attr]
