"""From scores to the channels that go: an order of removal, and how far along it a target lies."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from surgery.methods.planners.pruning.axes import Axis

RULES = ("uniform", "global")
TOLERANCE = 0.01  # of the original's cost: how far a target may be missed without a word


@dataclass(frozen=True)
class Limits:
    """What must stay of every axis.

    Attributes:
        least: channels of its first writer.
        share: of its channels.
        round_to: widths of its first writer become multiples of this; one that is narrower stays as it is.
    """

    least: int = 1
    share: float = 0.0
    round_to: int = 1

    def removable(self, axis: Axis) -> list[int]:
        """How many classes go at each step of an axis: first what is over a multiple, then whole multiples."""
        channels_each, step = axis.channels_each, math.lcm(self.round_to, axis.channels_each) // axis.channels_each
        floor = max(1, math.ceil(self.least / channels_each), math.ceil(self.share * len(axis.classes) - 1e-9))
        floor = math.ceil(floor / step) * step
        count = len(axis.classes)
        if count <= floor:
            return []
        steps = [count % step] if count % step else []
        return steps + [step] * ((count - count % step - floor) // step)


@dataclass(frozen=True)
class Unit:
    """Classes of an axis that go together.

    Attributes:
        axis: position of the axis.
        classes: of channels.
        fraction: of the axis that is gone after it.
        score: mean of what the classes are worth; never less than that of the unit before.
    """

    axis: int
    classes: np.ndarray = field(repr=False)
    fraction: float
    score: float


def units_of(position: int, axis: Axis, scores: np.ndarray, steps: Sequence[int]) -> list[Unit]:
    """The removal of an axis in steps, the least important classes first; of equal ones those with the least number."""
    if not steps:
        return []
    order = axis.classes[np.argsort(scores[axis.classes], kind="stable")]
    counts = np.array(steps, np.int64)
    ends = np.cumsum(counts)
    starts = ends - counts
    means = np.add.reduceat(scores[order[: ends[-1]]], starts) / counts
    worth = np.maximum.accumulate(means).tolist()
    fractions = (ends / len(order)).tolist()
    return [
        Unit(position, order[start:end], fraction, score)
        for start, end, fraction, score in zip(starts.tolist(), ends.tolist(), fractions, worth, strict=True)
    ]


def normalised(axis: Axis, scores: np.ndarray) -> np.ndarray:
    """Scores of an axis divided by their mean; of one that is worth nothing they stay 0."""
    values = scores.copy()
    own = values[axis.classes]
    finite = own[np.isfinite(own)]
    mean = finite.mean() if finite.size else 0.0
    values[axis.classes] = own / mean if mean > 0 else own
    return values


def order_of_removal(axes: Sequence[Axis], scores: np.ndarray, limits: Limits, rule: str) -> list[Unit]:
    """All that may go, in the order in which it goes; what is worth infinity stays.

    ``uniform`` removes the same share of every axis, ``global`` whatever is worth least.
    """
    everything = [u for i, axis in enumerate(axes) for u in units_of(i, axis, scores, limits.removable(axis))]
    units = [unit for unit in everything if unit.score < math.inf]
    if rule == "uniform":
        return sorted(units, key=lambda unit: (unit.score > -math.inf, unit.fraction, unit.axis))
    return sorted(units, key=lambda unit: (unit.score, unit.fraction, unit.axis))


def kept_shares(axis: Axis, units: Sequence[Unit], share: float) -> list[Unit]:
    """The first units of one axis, so many that the share of its channels that stays is nearest to ``share``."""
    misses = [abs(share - 1.0)] + [abs(1 - unit.fraction - share) for unit in units]
    return list(units[: int(np.argmin(misses))])


@dataclass(frozen=True)
class Target:
    """A cost to be met.

    Attributes:
        name: "macs" or "params".
        share: of the original's.
        original: the original's cost.
        of: cost when a mask (count,) of channel classes is gone.
    """

    name: str
    share: float
    original: int
    of: Callable[[np.ndarray], int] = field(repr=False)

    def miss(self, gone: np.ndarray) -> float:
        """How much more than the target there is, as a share of the original; negative where there is less."""
        return self.of(gone) / self.original - self.share


def meet(target: Target, order: Sequence[Unit], gone: np.ndarray) -> np.ndarray:
    """Remove units in order until the target is met as nearly as it can be; returns the mask of what is gone.

    Where a whole step is too coarse, later units that fit into what is left go too.
    """
    low, high = 0, len(order)  # with ``low`` units the cost is above the target or meets it
    if target.miss(gone) <= 0:
        return gone
    while high - low > 1:
        middle = (low + high) // 2
        if target.miss(_without(gone, order[:middle])) >= 0:
            low = middle
        else:
            high = middle
    above, below = _without(gone, order[:low]), _without(gone, order[:high])
    best = min(above, below, key=lambda mask: abs(target.miss(mask)))
    if abs(target.miss(best)) <= TOLERANCE / 4:
        return best
    return min(best, _filled(target, order[low:], above), key=lambda mask: abs(target.miss(mask)))


def _filled(target: Target, order: Sequence[Unit], gone: np.ndarray) -> np.ndarray:
    """More units, in order, each of which leaves the cost at the target or above it."""
    closed: set[int] = set()
    for unit in order:
        if unit.axis in closed:
            continue
        fuller = _without(gone, [unit])
        if target.miss(fuller) < 0:
            closed.add(unit.axis)  # what follows in the axis is worth more, and may not go before it
        else:
            gone = fuller
        if target.miss(gone) <= TOLERANCE / 4:
            break
    return gone


def _without(gone: np.ndarray, units: Sequence[Unit]) -> np.ndarray:
    mask = gone.copy()
    if units:
        mask[np.concatenate([unit.classes for unit in units])] = True
    return mask
