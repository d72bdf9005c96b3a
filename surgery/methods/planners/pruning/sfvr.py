"""SFVR, the sum of feature variance ratios (FVRCP, He et al.): what a channel contributes to the outputs that read it.

SFVR_i = Σ_j Var(M_ji) / Var(Y_j), where Y_j = Σ_i M_ji is output j of a layer that reads channel i, and M_ji what the
channel adds to it. It does not change when a filter in front of a BatchNorm is scaled, nor when a channel is scaled
behind a ReLU and its readers' weights by the inverse.

A depth-wise convolution has one input for each output, a ratio of 1 whatever the channel is worth; it is left out, and
what reads its output decides. Where a class holds several inputs of a layer, their ratios are added.
"""

from collections.abc import Iterable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from surgery.calibration.patches import padded_as
from surgery.core.eval_mode import eval_mode
from surgery.graph import ModelGraph
from surgery.graph.channel_classes import Coupling, Layer, ScaledLayer
from surgery.methods.planners.pruning.moments import ChannelMoments
from surgery.methods.planners.pruning.scores import readers
from surgery.methods.planners.pruning.weights import effective_weight

MOST_ELEMENTS = 1 << 24  # of the patches that are held at a time
CORRELATION = 0.3  # of neighbouring values of a feature map, which no norm tells; from the CIFAR-10 networks of RESULTS


def sfvr(model: nn.Module, coupling: Coupling, images: Iterable[Tensor]) -> np.ndarray:
    """SFVR with variances measured on images; Var(M_ji) = kᵀ Σ_i k is exact, with Σ_i the patches' covariance.

    Args:
        images: batches (N, C, H, W).

    Raises:
        ValueError: there are no images.
    """
    layers = _that_read_channels(coupling)
    measured = {layer.module: _Measured(model.get_submodule(layer.module)) for layer in layers}
    handles = [m.layer.register_forward_hook(m.add) for m in measured.values()]
    device, count = next(model.parameters()).device, 0
    try:
        with eval_mode(model), torch.no_grad():
            for batch in images:
                model(batch.to(device))
                count += len(batch)
    finally:
        for handle in handles:
            handle.remove()
    if not count:
        raise ValueError("sfvr needs images where it is to measure, and there are none")
    scores = np.zeros(coupling.count())
    for layer in layers:
        statistics = measured[layer.module]
        if not statistics.inputs.count:  # it runs in training only
            continue
        contributions = contributed(effective_weight(model, layer.module), layer.groups, statistics.inputs.covariance())
        ratios = variance_ratios(contributions, layer.groups, statistics.outputs.covariance().flatten())
        np.add.at(scores, layer.reads, ratios)
    return scores


def sfvr_from_norms(model: nn.Module, coupling: Coupling, graph: ModelGraph) -> np.ndarray:
    """SFVR without images, from what BatchNorms know.

    Var(M_ji) = ((1 − ρ) ‖K_ji‖² + ρ (Σ K_ji)²) Var(X_i), with Var(X_i) of a Gaussian of mean β and deviation γ that
    went through the activation, and one correlation ρ of all the values that a kernel reads; Var(Y_j) is the running
    variance of the BatchNorm that follows. Where none follows, or where X is known but for a factor (behind a pooling
    or a gate), Var(Y_j) is taken as Σ_i Var(M_ji).

    Raises:
        ValueError: what a layer reads comes from no BatchNorm; images are needed then.
    """
    moments = ChannelMoments(graph, model)
    scores = np.zeros(coupling.count())
    for layer in _that_read_channels(coupling):
        if not graph.calls[layer.module]:  # it runs in training only
            continue
        inputs = moments.inputs(layer.module)
        if inputs is None:
            raise ValueError(
                f"sfvr needs images=: no BatchNorm says what variance the channels have that {layer.module!r} reads"
            )
        weight = effective_weight(model, layer.module)
        variances = torch.from_numpy(inputs.variance)
        contributions = _by_input(gain(weight.double()), layer.groups) * variances[:, None]
        of_outputs = moments.output_variance(layer.module) if inputs.exact else None
        if of_outputs is None:
            of_outputs = contributions.unflatten(0, (layer.groups, -1)).sum(1).flatten()
        np.add.at(scores, layer.reads, variance_ratios(contributions, layer.groups, of_outputs))
    return scores


def gain(weight: Tensor) -> Tensor:
    """Var(M_ji) ÷ Var(X_i): (out, in ÷ groups), of weights (out, in ÷ groups, …)."""
    kernels = weight.reshape(*weight.shape[:2], -1)
    return (1 - CORRELATION) * kernels.square().sum(2) + CORRELATION * kernels.sum(2).square()


def _that_read_channels(coupling: Coupling) -> list[Layer]:
    """Layers with an input that may go, but for depth-wise ones; raises ValueError where one reads several maps."""
    removable = coupling.removable()
    layers = [layer for layer in readers(coupling) if np.isin(layer.reads, removable).any()]
    scaled = next((layer for layer in layers if isinstance(layer, ScaledLayer)), None)
    if scaled is not None:
        raise ValueError(
            f"sfvr does not compare the variances of maps of several sizes, which {scaled.module!r} reads; l1, taylor "
            "and gamma prune such networks"
        )
    return layers


def contributed(weight: Tensor, groups: int, covariance: Tensor) -> Tensor:
    """Var(M_ji) for every input and the outputs of its group: (in, out ÷ groups), float64.

    Args:
        weight: (out, in ÷ groups, kernel height, kernel width), or (out, in).
        covariance: (in, k², k²) of the patches of each input; (in, 1, 1) for a linear layer.
    """
    kernels = _by_input(weight.double().reshape(*weight.shape[:2], -1), groups)
    return ((kernels @ covariance) * kernels).sum(2)


def variance_ratios(contributions: Tensor, groups: int, of_outputs: Tensor) -> np.ndarray:
    """Σ_j Var(M_ji) / Var(Y_j) of each input; an output that does not vary counts nothing.

    Args:
        contributions: (in, out ÷ groups).
        of_outputs: (out,) variances.
    """
    inverse = torch.where(of_outputs > 0, 1 / of_outputs, 0.0).double()
    by_group = contributions.unflatten(0, (groups, -1)) * inverse.reshape(groups, 1, -1)
    ratios: np.ndarray = by_group.sum(2).flatten().cpu().numpy()
    return ratios


def _by_input(values: Tensor, groups: int) -> Tensor:
    """(out, in ÷ groups, …) as (in, out ÷ groups, …)."""
    return values.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)


class _Measured:
    """Statistics of what one layer reads and gives."""

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer
        self.inputs, self.outputs = _Covariance(), _Covariance()

    def add(self, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if not isinstance(layer, nn.Conv2d):
            self.inputs.add(inputs[0].flatten(0, -2)[:, :, None, None])
            self.outputs.add(output.flatten(0, -2)[:, :, None, None])
            return
        padded = padded_as(layer, inputs[0])
        taps = layer.kernel_size[0] * layer.kernel_size[1]
        for some in padded.split(max(1, MOST_ELEMENTS // (taps * padded[0].numel()))):
            self.inputs.add(some, layer)
        self.outputs.add(output)


class _Covariance:
    """Covariances of small vectors, one kind for each channel, over all samples that were added."""

    sum: Tensor | float = 0.0
    products: Tensor | float = 0.0
    count = 0

    def add(self, maps: Tensor, read_by: nn.Conv2d | None = None) -> None:
        """Add maps (N, C, H, W): the patches that a convolution reads of each channel, or else each number alone."""
        maps = maps.float() if maps.dtype in (torch.float16, torch.bfloat16) else maps
        if not self.count:
            self.shift = maps.mean((0, 2, 3), keepdim=True)  # near the mean, so that nothing cancels
        rows = _patches(maps - self.shift, read_by)
        products = rows.square().sum((0, 3))[:, :, None] if rows.shape[2] == 1 else (rows @ rows.mT).sum(0)
        self.sum = self.sum + rows.sum((0, 3)).double()
        self.products = self.products + products.double()
        self.count += rows.shape[0] * rows.shape[3]

    def covariance(self) -> Tensor:
        """(channels, size, size), float64."""
        assert isinstance(self.sum, Tensor) and isinstance(self.products, Tensor)
        mean = self.sum / self.count
        return self.products / self.count - mean[:, :, None] * mean[:, None, :]


def _patches(maps: Tensor, conv: nn.Conv2d | None) -> Tensor:
    """What a convolution reads of each channel of padded maps: (N, channels, k², positions)."""
    if conv is None or conv.kernel_size == (1, 1):
        down, across = (1, 1) if conv is None else conv.stride
        return maps[:, :, ::down, ::across].flatten(2)[:, :, None]
    rows = F.unfold(maps, conv.kernel_size, dilation=conv.dilation, stride=conv.stride)
    return rows.unflatten(1, (maps.shape[1], -1))
