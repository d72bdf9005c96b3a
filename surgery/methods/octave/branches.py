"""Which convolutions a gOctConv runs: links at one resolution are joined where one convolution can do their work.

An output gathers from all its inputs of its own resolution and finer ones: pooled and side by side they are read by one
convolution. A coarse input spreads to all finer outputs: one convolution at its resolution computes what each of them
gets, which is then enlarged. So between n inputs and n outputs of the same scales there are 2n − 1 convolutions instead
of n², and each reads and writes a slice of the weight as it is.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from surgery.methods.octave.scales import Scales

Slice = tuple[int, int]
Runs = list[tuple[tuple[int, ...], tuple[int, ...]]]


@dataclass(frozen=True)
class Branch:
    """One convolution.

    Attributes:
        inputs, outputs: positions of the maps; one of the two is a single one.
        rows, columns: of the weight: where they begin and end.
        groups: of the convolution.
        with_bias: whether it adds the bias of its rows.
        spreads: whether what it computes is enlarged.
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    rows: Slice
    columns: Slice
    groups: int = 1
    with_bias: bool = False
    spreads: bool = False


def branches_of(scales: Scales, groups: int) -> tuple[Branch, ...]:
    """The convolutions of a gOctConv, in the order in which they run."""
    if scales.separate:
        return tuple(_separate(scales, groups, i) for i in range(len(scales.in_channels)))
    if groups > 1:  # channels of several maps side by side would not lie in the groups' order
        runs: Runs = [((i,), (j,)) for i, j in scales.links]
    else:
        gathered = [(i, j) for i, j in scales.links if scales.shift((i, j)) >= 0]
        spread = [(i, j) for i, j in scales.links if scales.shift((i, j)) < 0]
        runs = [(run, (j,)) for j in _unique(j for _, j in gathered) for run in _runs(i for i, o in gathered if o == j)]
        runs += [((i,), run) for i in _unique(i for i, _ in spread) for run in _runs(j for n, j in spread if n == i)]
    return _with_bias([_branch(scales, groups, inputs, outputs) for inputs, outputs in runs])


def _separate(scales: Scales, groups: int, i: int) -> Branch:
    rows, (first, last) = scales.rows(i), scales.columns(i)
    whole = sum(scales.in_channels)
    own_groups = groups * scales.in_channels[i] // whole if groups > 1 else 1
    columns = (0, whole // groups) if groups > 1 else (first, last)
    return Branch((i,), (i,), rows, columns, own_groups, with_bias=True)


def _branch(scales: Scales, groups: int, inputs: Sequence[int], outputs: Sequence[int]) -> Branch:
    rows = (scales.rows(outputs[0])[0], scales.rows(outputs[-1])[1])
    columns = (scales.columns(inputs[0])[0] // groups, scales.columns(inputs[-1])[1] // groups)
    spreads = scales.shift((inputs[0], outputs[0])) < 0
    return Branch(tuple(inputs), tuple(outputs), rows, columns, groups, spreads=spreads)


def _with_bias(branches: Sequence[Branch]) -> tuple[Branch, ...]:
    """Of the branches that give one output, at its own resolution, the first adds its bias."""
    biased: set[int] = set()
    result = []
    for branch in branches:
        first = len(branch.outputs) == 1 and not branch.spreads and branch.outputs[0] not in biased
        biased |= {*branch.outputs} if first else set()
        result.append(replace(branch, with_bias=first))
    return tuple(result)


def _runs(positions: Iterable[int]) -> list[tuple[int, ...]]:
    """Ascending positions, cut where one is left out: what lies in one piece of the weight."""
    runs: list[list[int]] = []
    for position in sorted(positions):
        if runs and runs[-1][-1] == position - 1:
            runs[-1].append(position)
        else:
            runs.append([position])
    return [tuple(run) for run in runs]


def _unique(positions: Iterable[int]) -> list[int]:
    return sorted(set(positions))
