"""Bring a network that is only exported into an order in which contiguous subsets have become strided ones.

Other runtimes reduce whole chunks of channels, one elementwise maximum or sum after the other, much faster than runs of
neighbours (``docs/export.md``). Where all that writes and reads a stream is understood, its channels are permuted such
that every subset that a PiX layer reduces is strided; nothing changes of what the network computes.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from surgery.core.errors import SurgeryError
from surgery.graph import record
from surgery.graph.channels import Channels, Group, channel_groups
from surgery.methods.pix.lowering import HALF
from surgery.methods.planners.narrowing import Narrowing
from surgery.transforms.slicing import Sizes, keep_of_sides, slice_channels


@dataclass(frozen=True)
class _Reader:
    """A PiX layer that reads a stream: how many subsets it has, and the channels that it writes."""

    name: str
    subsets: int
    outputs: Group


def arrange(model: nn.Module, shape: Sequence[int], kind: type[nn.Module]) -> None:
    """Permute the streams that PiX layers read, in place, and make the layers strided.

    A stream that one of its readers keeps from it stays, and so does the whole model where it cannot be followed.

    Args:
        shape: (C, H, W) of an image.
        kind: the class of PiX layers.
    """
    layers: dict[str, Any] = {n: m for n, m in model.named_modules() if type(m) is kind and _can_be(m)}
    if not layers or "" in layers:
        return
    twins = {name: _twin(layer) for name, layer in layers.items()}
    for name, twin in twins.items():
        model.set_submodule(name, twin)
    try:
        permuted = _permute(model, tuple(shape), twins)
    finally:
        for name, layer in layers.items():
            model.set_submodule(name, layer)
    for name in permuted:
        layer, twin = layers[name], twins[name]
        layer.weight, layer.bias, layer.grouping = twin.weight, twin.bias, "strided"


def _can_be(layer: Any) -> bool:
    """Whether a layer has evenly sized contiguous subsets, and nothing of its own for each channel but its weights."""
    plain = layer.predictor_norm is None and layer.input_norm is None and not layer.standardize
    even = layer.in_channels % layer.out_channels == 0 and layer.in_channels > layer.out_channels > 1
    return plain and even and layer.grouping == "contiguous" and layer.weight.dtype not in HALF


def _twin(layer: Any) -> nn.Conv2d:
    """A convolution that reads and writes the same channels, with the same weights."""
    with torch.device("meta"):
        twin = nn.Conv2d(layer.in_channels, layer.out_channels, 1, layer.stride, bias=layer.bias is not None)
    twin.weight, twin.bias = layer.weight, layer.bias
    return twin


def _permute(model: nn.Module, shape: tuple[int, ...], twins: Mapping[str, nn.Conv2d]) -> list[str]:
    """Permute streams; returns the names of the layers whose subsets are strided then."""
    try:
        channels = channel_groups(record(model, shape))
    except SurgeryError:  # a forward that only runs with the layers themselves
        return []
    streams: dict[Group, list[_Reader]] = {}
    for name, twin in twins.items():
        segments, outputs = channels.reads.get(name, []), channels.writes.get(name, [])
        if len(segments) == len(outputs) == 1:
            reader = _Reader(name, twin.out_channels, outputs[0].root())
            streams.setdefault(segments[0].root(), []).append(reader)
    orders: dict[Group, list[int]] = {}
    permuted: list[str] = []
    for stream, readers in streams.items():
        if _is_free(stream, readers, streams, channels, twins):
            orders |= _orders(stream, readers)
            permuted += [reader.name for reader in readers]
    narrowing = Narrowing(channels, {group: group.width for group in orders})
    keep = {name: narrowing.kept(name, orders) for name in narrowing.widths()}
    slice_channels(model, Sizes(narrowing.widths()), keep_of_sides(model, keep))
    return permuted


def _is_free(
    stream: Group,
    readers: Sequence[_Reader],
    streams: Mapping[Group, list[_Reader]],
    channels: Channels,
    twins: Mapping[str, nn.Conv2d],
) -> bool:
    """Whether a stream can be permuted for all of its readers."""
    if stream.frozen or stream.multiple > 1:
        return False
    counts = sorted({reader.subsets for reader in readers})
    if any(more % fewer for fewer, more in zip(counts, [*counts[1:], stream.width], strict=True)):
        return False
    moved = [reader.outputs for reader in readers if reader.subsets > counts[0]]
    free = all(not group.frozen and group.multiple == 1 and group not in streams for group in moved)
    joined = any(stream in map(Group.root, channels.reads[name]) and len(channels.reads[name]) > 1 for name in twins)
    return free and not joined and len(set(moved)) == len(moved)


def _orders(stream: Group, readers: Sequence[_Reader]) -> dict[Group, list[int]]:
    """New orders of a stream and of what its readers write: new channel i is the old ``order[i]``.

    With n₁ | n₂ | … subsets, channel i = (a, b, …), numbered by subsets of subsets, goes to a + n₁ b + n₂ …: what lies
    in one of n_k runs of neighbours then agrees modulo n_k. The readers' outputs move as their subsets do.
    """
    counts = [*sorted({reader.subsets for reader in readers}), stream.width]
    positions = {count: _positions(counts[: number + 1]) for number, count in enumerate(counts)}
    orders = {stream: _inverse(positions[stream.width])}
    moved = [reader for reader in readers if reader.subsets > counts[0]]
    return orders | {reader.outputs: _inverse(positions[reader.subsets]) for reader in moved}


def _positions(counts: Sequence[int]) -> list[int]:
    """Where each of the last of ``counts`` many goes, by the digits of its number."""
    positions = torch.arange(counts[0])
    for fewer, more in itertools.pairwise(counts):
        digits = torch.arange(more // fewer)
        positions = (positions[:, None] + fewer * digits).flatten()
    return positions.tolist()


def _inverse(positions: Sequence[int]) -> list[int]:
    order = [0] * len(positions)
    for number, position in enumerate(positions):
        order[position] = number
    return order
