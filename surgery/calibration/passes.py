"""The forwards of both networks side by side, a pair for each batch, as far as they have come."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType

import torch
from torch import Tensor, nn

from surgery.calibration.targets import Target
from surgery.core.bfloat16 import computes_in_bfloat16
from surgery.graph.paused import Forward, PausableModel


@dataclass(frozen=True)
class Seen:
    """A batch at a target.

    Attributes:
        reads: what the layer reads in the converted network.
        parts: of what its target is made: nothing, or what the original has there, or besides it the original's and the
            converted one's addend.
        own_reads: what the layer reads in the original, where that is asked for.
        images: how many these are.
    """

    reads: Tensor
    parts: list[Tensor]
    own_reads: Tensor | None
    images: int


class Passes:
    """While entered: what the layers to fit read, and what they are fitted to, target after target.

    Args:
        networks: the converted and the original one.
        targets: all of them, in order.
        batches: of images.
        memory: bytes of activations that may wait; the first batches alone take part where all do not fit.
        dtype: of the activations; None is the networks' own.
    """

    def __init__(
        self,
        networks: tuple[nn.Module, nn.Module],
        targets: list[Target],
        batches: list[Tensor],
        memory: float,
        dtype: torch.dtype | None,
    ) -> None:
        self.networks, self.batches = networks, batches
        own = next(networks[0].parameters()).dtype
        cast_to = None if dtype in (None, own) else dtype
        addends = [target.addends for target in targets if target.addends]
        aims = {point for target in targets for point in (target.own_reads, target.aim) if point is not None}
        self._pausable = (
            PausableModel(networks[0], {t.reads for t in targets}, {pair[0] for pair in addends}, cast_to),
            PausableModel(networks[1], aims, {pair[1] for pair in addends}, cast_to),
        )
        self._running: list[tuple[Forward, Forward]] = []
        self._counts = _affordable(targets, batches, memory / (cast_to or own).itemsize)
        # a kept tensor goes when the last target that needs it is done
        self._last = {
            (side, pair[side]): n for n, t in enumerate(targets) if (pair := t.addends) is not None for side in (0, 1)
        }

    def __enter__(self) -> "Passes":
        for network in self._pausable:
            network.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for network in self._pausable:
            network.__exit__(kind, error, trace)

    def images(self, number: int) -> int:
        """How many images take part in the target of that number."""
        return sum(len(batch) for batch in self.batches[: self._counts[number]])

    def at(self, target: Target, number: int) -> Iterator[Seen]:
        """What is to be seen at a target, batch after batch."""
        for index in range(self._counts[number]):
            if index == len(self._running):
                started = [network.start(self.batches[index]) for network in self._pausable]
                self._running.append((started[0], started[1]))
            student, teacher = self._running[index]
            reads, parts = student.advance(target.reads), []
            own_reads = None if target.own_reads is None else teacher.advance(target.own_reads).to(reads.device)
            if target.aim is not None:
                parts.append(teacher.advance(target.aim))
            if target.addends is not None:
                parts += [teacher.values[target.addends[1]], student.values[target.addends[0]]]
            yield Seen(reads, [part.to(reads.device) for part in parts], own_reads, len(self.batches[index]))
            for side, forward in enumerate((student, teacher)):
                for point in list(forward.values):
                    if self._last.get((side, point), math.inf) <= number:
                        del forward.values[point]


def fast_dtype(model: nn.Module) -> torch.dtype | None:
    """bfloat16 where a float32 model runs faster in it, by instructions of the processor's or device's own."""
    parameter = next(model.parameters())
    if parameter.dtype != torch.float32 or not computes_in_bfloat16(parameter.device):
        return None
    return torch.bfloat16


def _affordable(targets: list[Target], batches: list[Tensor], numbers: float) -> list[int]:
    """How many batches both networks can hold at each target; never fewer than before, lest passes be run again."""
    counts, least = [], len(batches)
    for target in reversed(targets):
        held = max(1, target.elements * len(batches[0]))
        least = max(1, min(least, int(numbers // held)))
        counts.append(least)
    return counts[::-1]
