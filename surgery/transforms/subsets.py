"""Which input channels go into which output channel of a squeeze."""

import itertools


def subset_bounds(channels: int, subsets: int) -> list[int]:
    """Bounds of balanced contiguous subsets: subset i holds channels ``bounds[i]`` to ``bounds[i + 1] - 1``."""
    return [i * channels // subsets for i in range(subsets + 1)]


def subset_members(channels: int, subsets: int, grouping: str = "contiguous") -> list[list[int]]:
    """Channels of each subset: balanced runs (``contiguous``), or i, i + subsets, … (``strided``)."""
    if grouping == "strided":
        return [list(range(i, channels, subsets)) for i in range(subsets)]
    return [list(range(low, high)) for low, high in itertools.pairwise(subset_bounds(channels, subsets))]
