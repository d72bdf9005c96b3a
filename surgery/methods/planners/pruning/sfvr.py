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
from torch.overrides import TorchFunctionMode

from surgery.calibration.patches import padded_as
from surgery.core.eval_mode import eval_mode
from surgery.graph import ModelGraph
from surgery.graph.channel_classes import Coupling, Layer
from surgery.graph.kinds import STANDARDISED
from surgery.methods.planners.pruning.moments import ChannelMoments
from surgery.methods.planners.pruning.scores import readers, weight_of

MOST_ELEMENTS = 1 << 24  # of the patches that are held at a time


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
        contributions = contributed(effective_weight(model, layer), layer.groups, statistics.inputs.covariance())
        ratios = variance_ratios(contributions, layer.groups, statistics.outputs.covariance().flatten())
        np.add.at(scores, layer.reads, ratios)
    return scores


def sfvr_from_norms(model: nn.Module, coupling: Coupling, graph: ModelGraph) -> np.ndarray:
    """SFVR without images, from what BatchNorms know.

    Var(M_ji) = ‖K_ji‖² Var(X_i), with Var(X_i) of a Gaussian of mean β and deviation γ that went through the
    activation; Var(Y_j) is the running variance of the BatchNorm that follows. Where none follows, or where X is known
    but for a factor (behind a pooling or a gate), Var(Y_j) is taken as Σ_i Var(M_ji).

    Raises:
        ValueError: what a layer reads comes from no BatchNorm; images are needed then.
    """
    moments = ChannelMoments(graph, model)
    scores = np.zeros(coupling.count())
    for layer in _that_read_channels(coupling):
        known = moments.inputs(layer.module)
        if known is None:
            raise ValueError(
                f"sfvr needs images=: no BatchNorm says what variance the channels have that {layer.module!r} reads"
            )
        weight = effective_weight(model, layer)
        variances = torch.from_numpy(known.variance)
        contributions = weight.double().flatten(2).square().sum(2) if weight.dim() > 2 else weight.double().square()
        contributions = _by_input(contributions, layer.groups) * variances[:, None]
        of_outputs = moments.output_variance(layer.module) if known.exact else None
        if of_outputs is None:
            of_outputs = contributions.unflatten(0, (layer.groups, -1)).sum(1).flatten()
        np.add.at(scores, layer.reads, variance_ratios(contributions, layer.groups, of_outputs))
    return scores


def _that_read_channels(coupling: Coupling) -> list[Layer]:
    """Layers with an input that may go, but for depth-wise ones."""
    removable = coupling.removable()
    return [layer for layer in readers(coupling) if np.isin(layer.reads, removable).any()]


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
        if isinstance(layer, nn.Conv2d):
            padded = padded_as(layer, inputs[0])
            taps = layer.kernel_size[0] * layer.kernel_size[1]
            at_once = max(1, MOST_ELEMENTS // (taps * padded[0].numel()))
            for some in padded.split(at_once):
                self.inputs.add(_patches(layer, some))
            self.outputs.add(output.transpose(0, 1).flatten(1)[:, None])
        else:
            self.inputs.add(inputs[0].flatten(0, -2).T[:, None])
            self.outputs.add(output.flatten(0, -2).T[:, None])


def _patches(conv: nn.Conv2d, padded: Tensor) -> Tensor:
    """What a convolution reads of each channel: (channels, k², positions of all images)."""
    rows = F.unfold(padded, conv.kernel_size, dilation=conv.dilation, stride=conv.stride)  # type: ignore[arg-type]
    return rows.unflatten(1, (padded.shape[1], -1)).permute(1, 2, 0, 3).flatten(2)


class _Covariance:
    """Covariances of small vectors, of many kinds at once, over all samples that were added."""

    def __init__(self) -> None:
        self.count = 0
        self.shift: Tensor | None = None  # near the mean, so that nothing cancels

    def add(self, samples: Tensor) -> None:
        """Add samples (kinds, size, n)."""
        if self.shift is None:
            self.shift = samples.mean(2, keepdim=True)
            self.sum = torch.zeros(samples.shape[:2], dtype=torch.float64, device=samples.device)
            self.products = torch.zeros(
                (*samples.shape[:2], samples.shape[1]), dtype=torch.float64, device=samples.device
            )
        centred = samples - self.shift
        self.sum += centred.sum(2, dtype=torch.float64)
        self.products += (centred @ centred.mT).double()
        self.count += samples.shape[2]

    def covariance(self) -> Tensor:
        """(kinds, size, size), float64."""
        mean = self.sum / self.count
        return self.products / self.count - mean[:, :, None] * mean[:, None, :]


def effective_weight(model: nn.Module, layer: Layer) -> Tensor:
    """The weight that a layer computes with, which some standardise at every call."""
    module = model.get_submodule(layer.module)
    if not isinstance(module, STANDARDISED):
        return weight_of(model, layer)
    with torch.no_grad(), _ConvolutionWeights() as seen:
        side = max(module.kernel_size) * max(module.dilation)
        module(torch.zeros(1, module.in_channels, side, side, dtype=module.weight.dtype, device=module.weight.device))
    return seen.weight


class _ConvolutionWeights(TorchFunctionMode):
    """Notes the weight of the convolution that is called."""

    weight: Tensor

    def __torch_function__(self, func: object, types: object, args: tuple = (), kwargs: dict | None = None) -> object:
        if func is F.conv2d:
            self.weight = args[1]
        return func(*args, **(kwargs or {}))  # type: ignore[operator]
