"""What a channel is worth by what the others cannot make up for, measured on a few unlabelled images.

The layer that reads a set of hidden channels is a linear regression. Without some of its inputs, and with the least
squares weights for the others, its output misses what the others do not tell. Channels are removed one after the other,
each time the one whose loss costs least (optimal brain surgeon, Hassibi and Stork 1993, on the layer's own quadratic
error), the weights of the rest made up for it. A channel's worth is the error that its removal added, as a share of the
variance of what the layer gives, or of the residual sum that it goes into, for each multiply-accumulate that it saves:
so one ranking holds for all layers, and says how much each of them loses.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import cast

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from surgery.calibration.absorb import affine_of
from surgery.calibration.patches import FITTED, at, groups_of, matrices, patches, sampled
from surgery.calibration.targets import addend_of, place_of, to_sum
from surgery.core.checked_model import first_weight
from surgery.core.eval_mode import eval_mode
from surgery.graph import ModelGraph
from surgery.graph.channel_classes import Coupling, Layer
from surgery.graph.place import Place

ROWS_PER_FEATURE = 12
LEAST_ROWS = 12_000
LEAST_ROWS_PER_FEATURE = 4
MOST_FEATURES = 4_608
COMPACTIONS = 8  # of an elimination: after each eighth of what is left
RIDGE = 1e-4  # of the mean variance of the features
STAYS = np.inf  # the worth of channels that several layers read, or of which too little is known


@dataclass(frozen=True)
class Reader:
    """A layer that alone reads a set of channel classes.

    Attributes:
        name: of the layer.
        classes: (n,) channel classes that it alone reads.
        columns: (n, m) features of its regression that belong to each class.
        reads: where its input is.
        output: where what it gives can be seen last before a sum, or at the layer itself.
        addend: the other operand of that sum, or None.
        norm: name of the BatchNorm between layer and output, or None.
    """

    name: str
    classes: np.ndarray = field(repr=False)
    columns: np.ndarray = field(repr=False)
    reads: Place
    output: Place
    addend: Place | None
    norm: str | None


def reconstruction(
    model: nn.Module, coupling: Coupling, graph: ModelGraph, batches: Iterable[Tensor], per: str = "macs"
) -> np.ndarray:
    """Scores of channel classes: error that a removal adds ÷ what it saves; infinity where that is not known.

    Meant for a global ranking without normalisation. The model is not changed.

    Args:
        graph: of the model.
        batches: unlabelled images (N, C, H, W), as the network takes them; a few hundred are enough.
        per: "macs" or "params": what a channel's removal saves.

    Returns:
        (count,) float64, indexed by the class's number.

    Raises:
        ValueError: there is no image, or activations are not finite.
    """
    readers = readers_of(model, coupling, graph)
    scores = np.full(_count(coupling), STAYS)
    saved = savings(model, coupling, per)
    for reader, moments in zip(readers, observe(model, graph, readers, batches), strict=True):
        worth = worths(moments, matrices_behind(model, reader), reader.columns)
        scores[reader.classes] = worth / np.maximum(saved[reader.classes], 1)
    return scores


def readers_of(model: nn.Module, coupling: Coupling, graph: ModelGraph) -> list[Reader]:
    """Layers that alone read removable channels, and whose regression is small enough to be solved."""
    mixing = [layer for layer in coupling.layers.values() if layer.groups == 1 or layer.groups != len(layer.reads)]
    times = np.zeros(_count(coupling), np.int64)
    for layer in mixing:
        times[np.unique(layer.reads)] += 1
    alone = np.intersect1d(coupling.removable(), np.flatnonzero(times == 1))
    nodes = {node.meta.get("module"): node for node in graph if node.op == "call_module"}
    readers = (_reader(model, layer, graph, nodes.get(layer.module), alone) for layer in mixing)
    return [reader for reader in readers if reader is not None]


def _reader(
    model: nn.Module, layer: Layer, graph: ModelGraph, node: fx.Node | None, alone: np.ndarray
) -> Reader | None:
    module = model.get_submodule(layer.module)
    if node is None or type(module) not in FITTED or groups_of(module) != 1 or not graph.called_once(layer.module):
        return None
    features = matrices(module).shape[2]
    classes, counts = np.unique(layer.reads[np.isin(layer.reads, alone)], return_counts=True)
    if len(classes) < 2 or features > MOST_FEATURES or (counts != counts[0]).any():
        return None
    taps = features // len(layer.reads)  # taps of a convolution
    order = np.argsort(layer.reads, kind="stable")
    inputs = order[np.isin(layer.reads[order], classes)].reshape(len(classes), -1)
    columns = (inputs[:, :, None] * taps + np.arange(taps)).reshape(len(classes), -1)
    norm, last, total = to_sum(graph, node)
    output = place_of(graph, last)
    addend = None if total is None else place_of(graph, addend_of(total, last))
    if output is None or (total is not None and addend is None):
        norm, output, addend = None, Place(layer.module, True), None
    return Reader(layer.module, classes, columns, Place(layer.module, False), output, addend, norm)


def savings(model: nn.Module, coupling: Coupling, per: str = "macs") -> np.ndarray:
    """Multiply-accumulates or parameters that go with one class, the others being there; (count,) float64."""
    saved = np.zeros(_count(coupling))
    for layer in coupling.layers.values():
        weight = cast(Tensor, model.get_submodule(layer.module).weight)
        cost = layer.macs if per == "macs" else weight.numel()
        sides = [layer.writes] if layer.groups == len(layer.reads) > 1 else [layer.writes, layer.reads]
        for numbers in sides:
            np.add.at(saved, numbers, cost / len(numbers))
    return saved


def matrices_behind(model: nn.Module, reader: Reader) -> Tensor:
    """The reader's weight (outputs, features), float64, with the scale of the norm behind it."""
    weight = matrices(model.get_submodule(reader.name))[0]
    norm = None if reader.norm is None else cast(_BatchNorm, model.get_submodule(reader.norm))
    scale, _ = affine_of(norm, weight[:, 0])
    return scale[:, None].to(weight.device) * weight


@dataclass
class Moments:
    """Of what a reader reads and what it gives: (features, features), (features,), and the spread of the output."""

    products: Tensor
    sums: Tensor
    outputs: Tensor
    squares: Tensor
    rows: int = 0

    @property
    def covariance(self) -> Tensor:
        mean = self.sums / self.rows
        return self.products / self.rows - mean[:, None] * mean

    @property
    def spread(self) -> float:
        """Variance of the output, or of the sum that it goes into, added over channels."""
        return float((self.squares / self.rows - (self.outputs / self.rows) ** 2).sum())

    def add(self, x: Tensor, y: Tensor) -> None:
        """Rows (R, features) of what is read and (R, outputs) of what comes of it."""
        x = x.float()
        self.products += x.mT @ x
        self.sums += x.sum(0, dtype=torch.float64)
        self.outputs += y.sum(0, dtype=torch.float64)
        self.squares += y.double().square().sum(0)
        self.rows += len(x)


@torch.no_grad()
def observe(model: nn.Module, graph: ModelGraph, readers: list[Reader], batches: Iterable[Tensor]) -> list[Moments]:
    """Moments of all readers, from one forward in eval mode for each batch, at random positions of the maps."""
    moments = [_moments(model, reader) for reader in readers]
    images = [batch.to(first_weight(model)) for batch in batches]
    count = sum(len(batch) for batch in images)
    if not count:
        raise ValueError("there are no images to measure what channels are worth on")
    generator = torch.Generator().manual_seed(0)
    with eval_mode(model):
        for batch in images:
            watches = [_Watch(model, *pair, generator, count) for pair in zip(readers, moments, strict=True)]
            try:
                model(batch)
            finally:
                for watch in watches:
                    watch.remove()
    for reader, seen in zip(readers, moments, strict=True):
        if not torch.isfinite(seen.products).all() or not np.isfinite(seen.spread):
            raise ValueError(f"{reader.name!r} meets NaN or infinity: finite activations are needed")
    return moments


def _moments(model: nn.Module, reader: Reader) -> Moments:
    weight = matrices(model.get_submodule(reader.name))[0]
    outputs, features = weight.shape

    def zeros(*size: int) -> Tensor:
        return torch.zeros(size, dtype=torch.float64, device=weight.device)

    return Moments(zeros(features, features), zeros(features), zeros(outputs), zeros(outputs))


class _Watch:
    """Takes rows of one reader during one forward, as its tensors come by, and adds them up at the end."""

    def __init__(
        self, model: nn.Module, reader: Reader, moments: Moments, generator: torch.Generator, images: int
    ) -> None:
        self._layer, self._moments = model.get_submodule(reader.name), moments
        self._generator, self._images = generator, images
        self._x: Tensor | None = None
        self._places: tuple[Tensor, ...] = ()
        self._early: Tensor | None = None
        self._rows: list[Tensor] = []
        self._handles = [self._layer.register_forward_hook(self._own, prepend=True)]
        self._handles.append(_hook(model, reader.output, self._give))
        self._awaited = 1 if reader.addend is None else 2
        if reader.addend is not None:
            self._handles.append(_hook(model, reader.addend, self._give))

    def _own(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        rows = max(LEAST_ROWS, ROWS_PER_FEATURE * matrices(module).shape[2])
        count = max(1, -(-rows // self._images) * len(args[0]) // len(output))
        self._places = sampled(output, count, self._generator, isinstance(module, nn.Linear))
        self._x = patches(module, args[0], self._places)[:, 0]
        if self._early is not None:
            self._rows.append(at(self._early, self._places))
            self._early = None

    def _give(self, value: Tensor) -> None:
        if not self._places:
            self._early = value  # an addend that is there before the layer runs
            return
        self._rows.append(at(value, self._places))

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()
        if self._x is not None and len(self._rows) == self._awaited:
            self._moments.add(self._x, sum(self._rows[1:], self._rows[0]))


def _hook(model: nn.Module, point: Place, take: Callable[[Tensor], None]) -> torch.utils.hooks.RemovableHandle:
    module = model.get_submodule(point.module)
    if point.output:
        return module.register_forward_hook(lambda module, args, output: take(output))
    return module.register_forward_pre_hook(lambda module, args: take(args[0]))


def worths(moments: Moments, weight: Tensor, columns: np.ndarray) -> np.ndarray:
    """The share of the output's variance that each removal adds to the error, in the best order; by class.

    What is removed later is worth more. With few rows for each feature, which would explain anything, all stay.
    """
    if moments.rows < LEAST_ROWS_PER_FEATURE * len(weight.mT):
        return np.full(len(columns), STAYS)
    order, errors = elimination(moments.covariance, weight, torch.from_numpy(columns))
    worth = np.empty(len(columns))
    rising = np.maximum.accumulate(errors) / max(moments.spread, 1e-300)
    worth[order] = rising * (1 + 1e-9 * np.arange(len(order)))  # equal ones in the order of their removal
    return worth


def elimination(covariance: Tensor, weight: Tensor, columns: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Remove groups of features one after the other, each time the one that costs least.

    With Σ the covariance and w the least squares weights of what is left, the error grows by
    w_g ([Σ⁻¹]_gg)⁻¹ w_gᵀ when the group g goes, and the others change by −w_g ([Σ⁻¹]_gg)⁻¹ [Σ⁻¹]_g.

    Args:
        covariance: (features, features); weight: (outputs, features). float64.
        columns: (groups, m) features of each group.

    Returns:
        (groups,) the order, and (groups,) what each removal adds to the mean squared error, summed over outputs.
    """
    ridge = RIDGE * covariance.diagonal().mean().clamp(min=1e-30)
    inverse = torch.cholesky_inverse(
        torch.linalg.cholesky(covariance + ridge * torch.eye(len(covariance)).to(covariance))
    )
    weight, left = weight.clone(), torch.arange(len(columns))
    staying = torch.from_numpy(np.setdiff1d(np.arange(len(covariance)), columns))
    order, errors = [], []
    while len(left):
        for _ in range(-(-len(left) // COMPACTIONS)):
            costs = _costs(inverse, weight, columns)
            position = int(costs.argmin())
            order.append(int(left[position]))
            errors.append(float(costs[position].clamp(min=0)))
            _remove(inverse, weight, columns[position])
            columns, left = _without(columns, position), _without(left, position)
        features = torch.cat([columns.flatten(), staying])  # what is gone costs no time any more
        inverse, weight = inverse[features][:, features], weight[:, features]
        columns = torch.arange(columns.numel()).reshape(columns.shape)
        staying = torch.arange(columns.numel(), len(features))
    return np.array(order), np.array(errors)


def _costs(inverse: Tensor, weight: Tensor, columns: Tensor) -> Tensor:
    """What the removal of each group adds to the mean squared error, summed over outputs; (groups,)."""
    blocks = inverse[columns[:, :, None], columns[:, None, :]]  # (groups, m, m)
    own = weight[:, columns].permute(1, 2, 0)  # (groups, m, outputs)
    return (own * torch.linalg.solve(blocks, own)).sum((1, 2))


def _remove(inverse: Tensor, weight: Tensor, gone: Tensor) -> None:
    """Take features out of an inverse covariance and out of the weights that go with it, in place.

    Their own rows and columns are not meant to be read any more.
    """
    rows = torch.linalg.solve(inverse[gone][:, gone], inverse[gone])
    weight.addmm_(weight[:, gone], rows, alpha=-1)
    inverse.addmm_(inverse[:, gone], rows, alpha=-1)


def _without(values: Tensor, position: int) -> Tensor:
    return torch.cat([values[:position], values[position + 1 :]])


def _count(coupling: Coupling) -> int:
    """A number above every class's."""
    numbers = [side for layer in coupling.layers.values() for side in (layer.reads, layer.writes)]
    return 1 + max((int(side.max()) for side in numbers if side.size), default=0)
