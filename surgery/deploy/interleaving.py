"""Order channels of a copy such that layers which reduce runs of neighbours reduce whole chunks of channels instead.

Engines for CPUs split a map into chunks for nothing, or nearly so, and compare and add chunks elementwise; a reduction
over a run of channels costs them several times that (docs/export.md). Where producers and readers of a stream are
reordered together, nothing of what the network computes changes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from torch import nn

from surgery.core.errors import SurgeryError
from surgery.core.surgery_layer import SurgeryLayer
from surgery.graph import record
from surgery.graph.channels import Channels, Group, channel_groups
from surgery.transforms.slicing import Sizes, Widths, keep_of_sides, slice_channels

Orders = dict[Group, list[int]]  # new channel i of a group is its old channel ``order[i]``


@dataclass
class Interleaving:
    """What became of the layers that reduce runs: the names of those which reduce chunks now, and why others do not."""

    done: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)


def interleave(model: nn.Module, input_size: Sequence[int]) -> Interleaving:
    """Reorder a model in place, so that its layers that reduce runs of channels reduce chunks, where the graph allows.

    Args:
        model: in eval mode, with weights; its forward stays the same.
        input_size: (C, H, W).
    """
    layers = _layers_of_runs(model)
    if not layers:
        return Interleaving()
    convolutions = {name: layer.squeeze_of_runs() for name, layer in layers.items()}
    for name, convolution in convolutions.items():
        assert convolution is not None
        model.set_submodule(name, convolution)
    result = Interleaving()
    try:
        channels = channel_groups(record(model, tuple(input_size)))
        orders, result = _orders(channels, {name: layer.ratio for name, layer in _squeezes(model, layers).items()})
        _reorder(model, channels, orders)
    except SurgeryError as error:  # such as tensors that two modules share; nothing is changed then
        result = Interleaving(refused=dict.fromkeys(layers, str(error)))
    for name, layer in layers.items():
        convolution = convolutions[name]
        assert convolution is not None
        model.set_submodule(name, layer.with_chunks(convolution) if name in result.done else layer)
    return result


@dataclass(frozen=True)
class _Squeeze:
    channels: int
    outputs: int

    @property
    def ratio(self) -> int:
        """Channels of each run; 0 where they are not equally many."""
        return 0 if self.channels % self.outputs else self.channels // self.outputs


def _squeezes(model: nn.Module, names: Mapping[str, object]) -> dict[str, _Squeeze]:
    convolutions = {name: model.get_submodule(name) for name in names}
    return {n: _Squeeze(c.in_channels, c.out_channels) for n, c in convolutions.items() if isinstance(c, nn.Conv2d)}


def _layers_of_runs(model: nn.Module) -> dict[str, SurgeryLayer]:
    """Layers by name that reduce runs of channels; what several places share is left out."""
    names: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(module, []).append(name)
    return {
        own[0]: layer
        for layer, own in names.items()
        if isinstance(layer, SurgeryLayer) and own != [""] and len(own) == 1 and layer.squeeze_of_runs() is not None
    }


def _orders(channels: Channels, ratios: Mapping[str, int]) -> tuple[Orders, Interleaving]:
    """New orders of streams, and of the outputs of layers whose subsets leave in another order."""
    readers: dict[Group, list[str]] = {}
    result = Interleaving()
    for name in ratios:
        segments = channels.reads.get(name, [])
        if len(segments) == 1 and name in channels.writes:
            readers.setdefault(segments[0].root(), []).append(name)
        else:
            result.refused[name] = "it reads a concatenation, or channels in a way that is not followed"
    orders: Orders = {}
    for stream, names in readers.items():
        reason = _refusal(channels, stream, names, ratios, set(readers))
        if reason:
            result.refused |= dict.fromkeys(names, reason)
            continue
        wanted = sorted({ratios[name] for name in names}, reverse=True)
        orders[stream] = digits_reversed(stream.width, wanted)
        for name in names:
            outputs = stream.width // ratios[name]
            order = digits_reversed(outputs, [ratio // ratios[name] for ratio in wanted if ratio > ratios[name]])
            orders |= {channels.writes[name][0].root(): order} if order != list(range(outputs)) else {}
        result.done += names
    return orders, result


def _refusal(
    channels: Channels, stream: Group, names: list[str], ratios: Mapping[str, int], streams: set[Group]
) -> str:
    """Why a stream cannot be reordered for those that read it, or ""."""
    if stream.frozen or stream.multiple > 1:
        return stream.frozen or "a grouped convolution reads the same channels"
    if set(stream.producers) & set(ratios):
        return "another such layer writes its channels"
    wanted = sorted({ratios[name] for name in names}, reverse=True)
    if 0 in wanted or any(larger % smaller for larger, smaller in pairwise(wanted)):
        return "its subsets are not equally large, or not nested in those of another layer"
    for name in names:
        outputs = channels.writes[name][0].root()
        fixed = outputs.frozen or outputs.multiple > 1 or outputs in streams or outputs.producers != [name]
        if fixed and ratios[name] != wanted[0]:
            return "its outputs would leave in another order, and what reads them is fixed"
    return ""


def digits_reversed(width: int, ratios: Sequence[int]) -> list[int]:
    """An order of channels in which the runs of ``ratios`` (descending, each dividing the one before) are strided.

    Positions p and p + width / ratio · k hold channels of one run, for every ratio.
    """
    sizes = [width, *ratios, 1]
    digits = [larger // smaller for larger, smaller in pairwise(sizes)]
    return np.arange(width).reshape(digits).transpose().reshape(-1).tolist()


def _reorder(model: nn.Module, channels: Channels, orders: Orders) -> None:
    sides: dict[str, tuple[list[int] | None, list[int] | None]] = {}
    widths: Widths = {}
    for name in dict.fromkeys([*channels.reads, *channels.writes]):
        kept = (_indices(channels.reads.get(name, []), orders), _indices(channels.writes.get(name, []), orders))
        if kept != (None, None):
            sides[name], widths[name] = kept, [None if side is None else len(side) for side in kept]
    slice_channels(model, Sizes(widths), keep_of_sides(model, sides))


def _indices(segments: Sequence[Group], orders: Orders) -> list[int] | None:
    """Where each channel of a concatenation of groups comes from; None where all stay where they are."""
    if not any(group.root() in orders for group in segments):
        return None
    indices: list[int] = []
    for group in segments:
        start = len(indices)
        indices += [start + channel for channel in orders.get(group.root(), range(group.width))]
    return indices
