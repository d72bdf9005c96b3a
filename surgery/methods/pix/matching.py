"""Order channels so that those which a squeeze adds up come to lie in one subset; what is computed stays the same.

PiX reduces neighbours. Which channels are neighbours in a pretrained network is chance; but where producers and
consumers of a stream are reordered together, nothing of what the network computes changes. So the order is chosen by
linear assignment such that each subset holds the channels that weigh most in a row of the replaced convolution.
"""

import copy
import hashlib
from dataclasses import dataclass
from typing import cast

import numpy as np
from torch import Tensor, nn

from surgery.core.extras import check_extra
from surgery.graph import record
from surgery.graph.channels import Channels, Group, channel_groups
from surgery.methods.planners.narrowing import Narrowing
from surgery.planning.plan import Plan
from surgery.transforms.history import remember
from surgery.transforms.modules_by_name import submodule
from surgery.transforms.reorder import Reorder
from surgery.transforms.replace import Replace
from surgery.transforms.slicing import Sizes, keep_of_sides, slice_channels
from surgery.transforms.subsets import subset_members

ROUNDS = 10


@dataclass
class _Reader:
    """A site that reads a stream.

    Attributes:
        scores: (channels of the stream, outputs of the site that will stay): what each channel weighs in each output.
        subset: of every position of the stream, the site's subset that it belongs to.
        kept: which outputs stay, in the order of the subsets.
        row: of every subset, the column of ``scores`` that it serves.
        free: whether the outputs may change places.
    """

    scores: np.ndarray
    subset: np.ndarray
    kept: list[int]
    row: np.ndarray
    free: bool
    outputs: Group


def match_for(decided: Plan, model: nn.Module, *, inside: bool = False) -> None:
    """Reorder a model in place, for a plan that was made for it.

    A stream stays as it is where the graph analysis does not understand all that reads or writes it.

    Args:
        inside: leave the order of all that ``forward_features`` and ``forward_intermediates`` return.
    """
    check_extra("calibrate", "surgery.match", ("scipy",))
    channels = channel_groups(record(model, decided.input_size))
    if inside:
        _freeze_features(channels, model, decided.input_size)
    orders = _orders(decided, model, channels)
    if not orders:
        return
    narrowing = Narrowing(channels, {group: group.width for group in orders})
    keep = {name: narrowing.kept(name, orders) for name in narrowing.widths()}
    slice_channels(model, Sizes(narrowing.widths()), keep_of_sides(model, keep))
    digest = hashlib.blake2b(repr(sorted(keep.items())).encode(), digest_size=8).hexdigest()
    remember(model, Reorder(digest, inside))


def _freeze_features(channels: Channels, model: nn.Module, size: tuple[int, ...]) -> None:
    """Freeze the channels of the feature maps that timm's further forwards return."""
    for method in ("forward_features", "forward_intermediates"):
        if not hasattr(model, method):
            continue
        view = copy.copy(model)  # the same modules, called another way
        view.__class__ = type(type(model).__name__, (type(model),), {"forward": getattr(type(model), method)})
        returned = channel_groups(record(view, size)).returned
        writers = {name for group in returned for name in group.root().producers}
        for group in (segment.root() for segments in channels.writes.values() for segment in segments):
            if writers.intersection(group.producers):
                group.frozen = group.frozen or f"{method} returns it"


def _orders(decided: Plan, model: nn.Module, channels: Channels) -> dict[Group, list[int]]:
    """New orders of channel groups: new channel i is the old ``order[i]``."""
    keep = decided.kept_outputs(model)
    streams: dict[Group, list[_Reader]] = {}
    for transform in decided.transforms:
        if not isinstance(transform, Replace):
            continue
        reader = _reader(model, channels, transform, keep.get(transform.module))
        if reader is not None:
            streams.setdefault(channels.reads[transform.module][0].root(), []).append(reader)
    orders: dict[Group, list[int]] = {}
    for stream, readers in streams.items():
        if stream.frozen:
            for reader in readers:
                _settle(reader, np.arange(stream.width))
        else:
            orders[stream] = _arranged(readers).tolist()
        for reader in readers:
            if reader.free:
                order = list(range(reader.outputs.width))
                for channel, row in zip(reader.kept, reader.row, strict=True):
                    order[channel] = reader.kept[row]
                orders[reader.outputs] = order
    return orders


def _reader(model: nn.Module, channels: Channels, transform: Replace, kept: list[int] | None) -> _Reader | None:
    site, width, grouping = transform.module, transform.channels, transform.options.get("grouping")
    segments, outputs = channels.reads.get(site, []), channels.writes.get(site, [])
    if grouping is None or len(segments) != 1 or len(outputs) != 1:
        return None
    stream, out = segments[0].root(), outputs[0].root()
    if stream.multiple > 1 or stream.width != width[0] or width[0] == width[1]:
        return None
    kept = kept or list(range(out.width))
    weight = cast(Tensor, submodule(model, site).weight).detach().float().flatten(1).cpu().numpy()[kept]
    members = subset_members(width[0], width[1], grouping)
    subset = np.empty(width[0], dtype=np.int64)
    for number, row in enumerate(members):
        subset[list(row)] = number
    free = not out.frozen and out.multiple == 1 and out is not stream
    return _Reader(weight.T / np.abs(weight).mean(), subset, kept, np.arange(len(kept)), free, out)


def _arranged(readers: list[_Reader]) -> np.ndarray:
    """Of every position of a stream, the channel that goes there; sets each reader's ``row``.

    Positions and rows are assigned in turn, each the best for the other, until nothing gets better; readers join one
    after the other, the fewest subsets first, since the others' lie within those.
    """
    order = np.arange(len(readers[0].subset))
    joined: list[_Reader] = []
    for reader in sorted(readers, key=lambda reader: len(reader.kept)):
        joined.append(reader)
        _settle(reader, order if len(joined) > 1 else None)
        order = _placed(joined)
    best = -np.inf
    for _ in range(ROUNDS):
        rows = [reader.row for reader in readers]
        for reader in readers:
            _settle(reader, order)
        candidate = _placed(readers)
        value = sum(_value(reader, candidate) for reader in readers)
        if value <= best * (1 + 1e-6):
            for reader, row in zip(readers, rows, strict=True):
                reader.row = row
            break
        order, best = candidate, value
    return order


def _settle(reader: _Reader, order: np.ndarray | None) -> None:
    """Give each subset the output that its channels serve best."""
    if order is None or not reader.free:
        return
    gain = np.zeros((len(reader.kept), reader.scores.shape[1]))
    np.add.at(gain, reader.subset, reader.scores[order])
    reader.row = _assigned(gain)


def _placed(readers: list[_Reader]) -> np.ndarray:
    """Give each position the channel that serves its subsets best."""
    gain = sum(reader.scores[:, reader.row[reader.subset]] for reader in readers)
    return _assigned(np.asarray(gain).T)


def _assigned(gain: np.ndarray) -> np.ndarray:
    """Of every row, the column that it gets, each once, where the gains add up to most."""
    from scipy.optimize import linear_sum_assignment  # of an extra

    return cast(np.ndarray, linear_sum_assignment(gain, maximize=True)[1])


def _value(reader: _Reader, order: np.ndarray) -> float:
    return float(reader.scores[order, reader.row[reader.subset]].sum())
