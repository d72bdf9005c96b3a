"""Candidates with what they cost and save, measured or read off between two that were."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from surgery.planning.candidate import Candidate
from surgery.sensitivity_analysis.result import SensitivityRow

LEAST = 1e-6  # a divergence or an error below it is taken for it, lest its logarithm be infinite


@dataclass(frozen=True)
class Weighed:
    """A candidate.

    Attributes:
        kl, error, macs, params, seconds: see :class:`surgery.sensitivity_analysis.result.SensitivityRow`; seconds is 0
            where no time was measured.
        measured: whether it was, rather than read off.
    """

    candidate: Candidate
    kl: float
    error: float
    macs: float
    params: float
    seconds: float
    measured: bool = True

    def saved(self, budget: str) -> float:
        """What it saves of a budget."""
        return {"macs": self.macs, "params": self.params, "latency": self.seconds}[budget]


def weighed(candidates: Sequence[Candidate], rows: Sequence[SensitivityRow]) -> list[Weighed]:
    """The candidates of which something is known: those measured, and those between or beside two of the same site."""
    by_site: dict[tuple[str, str], list[SensitivityRow]] = {}
    for row in rows:
        by_site.setdefault((row.method, row.site), []).append(row)
    result = []
    for candidate in candidates:
        measured = by_site.get((candidate.method, candidate.site), [])
        own = next((row for row in measured if row.keep == candidate.keep), None)
        if own is not None:
            seconds = (
                _saved(1 - own.keep, measured, [row.seconds for row in measured])
                if own.seconds is None
                else own.seconds
            )
            result.append(Weighed(candidate, own.kl, own.error, own.macs, own.params, seconds))
        elif measured and candidate.keep < 1:
            result.append(_between(candidate, measured))
    return result


def _between(candidate: Candidate, rows: Sequence[SensitivityRow]) -> Weighed:
    """By power laws of the share that goes for what is lost, and in proportion for what is saved."""
    gone = 1 - candidate.keep
    rows = sorted(rows, key=lambda row: -row.keep)
    shares = [1 - row.keep for row in rows]

    def lost(values: Sequence[float]) -> float:
        return math.exp(_interpolated(math.log(gone), np.log(shares), np.log(np.maximum(values, LEAST))))

    return Weighed(
        candidate,
        lost([row.kl for row in rows]),
        lost([row.error for row in rows]),
        _saved(gone, rows, [row.macs for row in rows]),
        _saved(gone, rows, [row.params for row in rows]),
        _saved(gone, rows, [row.seconds for row in rows]),
        measured=False,
    )


def _saved(gone: float, rows: Sequence[SensitivityRow], values: Sequence[float | None]) -> float:
    """Between what was measured, and in proportion beyond; 0 where nothing was."""
    points = sorted((1 - row.keep, value) for row, value in zip(rows, values, strict=True) if value is not None)
    if not points:
        return 0.0
    shares, amounts = [0.0, *(share for share, _ in points)], [0.0, *(value for _, value in points)]
    if gone > shares[-1] > 0:
        return amounts[-1] * gone / shares[-1]
    return float(np.interp(gone, shares, amounts))


def _interpolated(x: float, xs: np.ndarray, ys: np.ndarray) -> float:
    """Linear between points and beyond them; with a slope of 2 where there is one only."""
    if len(xs) == 1:
        return float(ys[0] + 2 * (x - xs[0]))
    right = int(np.clip(np.searchsorted(xs, x), 1, len(xs) - 1))
    slope = max(0.0, (ys[right] - ys[right - 1]) / (xs[right] - xs[right - 1]))
    return float(ys[right] + slope * (x - xs[right]))
