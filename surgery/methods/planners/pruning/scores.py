"""What a channel is worth: scores of channel classes, float64, indexed by the class's number.

A score is a function of a model and its coupling; what else it needs is bound to it before (``functools.partial``).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from surgery.core.eval_mode import eval_mode
from surgery.graph.channel_classes import Coupling, Layer
from surgery.methods.planners.pruning.weights import effective_weight

UNLABELLED = -100  # what torch's cross-entropy leaves out
Score = Callable[[nn.Module, Coupling], np.ndarray]
Batch = tuple[Tensor, Tensor]


def l1(model: nn.Module, coupling: Coupling) -> np.ndarray:
    """Σ|w| of each filter ÷ the mean over its layer's filters, added over the layers that write the class.

    Li et al., Pruning Filters for Efficient ConvNets, 2017; the division makes layers comparable.
    """
    scores = np.zeros(coupling.count())
    for layer in coupling.layers.values():
        weight = effective_weight(model, layer.module)
        norms = weight.abs().flatten(1).sum(1, dtype=torch.float64).cpu().numpy()
        if (mean := norms.mean()) > 0:
            np.add.at(scores, layer.writes, norms / mean)
    return scores


def random(model: nn.Module, coupling: Coupling, seed: int = 0) -> np.ndarray:
    """Uniform in [0, 1): the control that every other score must beat."""
    return np.random.default_rng(seed).random(coupling.count())


def taylor(model: nn.Module, coupling: Coupling, batches: Iterable[Batch]) -> np.ndarray:
    """First-order Taylor expansion of the loss: |activation · gradient| of a channel, mean over batches.

    The sum of activation times gradient over a feature map that a convolution reads is the sum of weight times gradient
    over the weights that read it, so gradients of parameters are all it takes (Molchanov et al. 2017 for the criterion,
    2019 for gates); it holds for linear layers too. Over the layers that read a class the terms are added before the
    absolute value is taken. The loss is the cross-entropy, the model in eval mode.

    Args:
        batches: (images (N, C, H, W), labels (N,) int64).

    Raises:
        ValueError: there is no batch, the loss is not finite, or labels do not fit what the model gives.
    """
    weights = {layer.module: model.get_submodule(layer.module).get_parameter("weight") for layer in readers(coupling)}
    scores, count = np.zeros(coupling.count()), 0
    device = next(iter(weights.values())).device if weights else torch.device("cpu")
    with eval_mode(model), _requiring_grad(weights.values()), torch.enable_grad():
        for images, labels in batches:
            loss = _cross_entropy(model(images.to(device)), labels.to(device))
            if not torch.isfinite(loss):
                raise ValueError(f"the loss of batch {count} is {loss.item()}: taylor needs a finite one")
            gradients = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
            scores += np.abs(_first_order(coupling, weights, gradients))
            count += 1
    if not count:
        raise ValueError("taylor needs batches of labelled images, and there are none")
    return scores / count


def _cross_entropy(output: object, labels: Tensor) -> Tensor:
    """Raises ValueError where an output and labels do not belong together."""
    if not isinstance(output, Tensor) or output.ndim < 2:
        kind = (
            f"a tensor of shape {tuple(output.shape)}" if isinstance(output, Tensor) else f"a {type(output).__name__}"
        )
        raise ValueError(f"the model gives {kind}: taylor needs one that gives class scores (N, classes)")
    classes = output.shape[1]
    expected = output.shape if labels.is_floating_point() else (len(output), *output.shape[2:])
    if labels.shape != expected:
        raise ValueError(
            f"labels of shape {tuple(labels.shape)}, {labels.dtype}, where the model gives {tuple(output.shape)}: "
            f"whole numbers {(len(output), *output.shape[2:])}, or probabilities {tuple(output.shape)}, are needed"
        )
    if not labels.is_floating_point() and (wrong := labels[_outside(labels, classes)]).numel():
        raise ValueError(f"label {wrong[0].item()}: the model has classes 0 to {classes - 1}")
    return nn.functional.cross_entropy(output, labels)


def _outside(labels: Tensor, classes: int) -> Tensor:
    return ((labels < 0) | (labels >= classes)) & (labels != UNLABELLED)


def _first_order(coupling: Coupling, weights: Mapping[str, Tensor], gradients: Iterable[Tensor | None]) -> np.ndarray:
    terms = np.zeros(coupling.count())
    for (name, weight), gradient in zip(weights.items(), gradients, strict=True):
        if gradient is not None:
            layer = coupling.layers[name]
            np.add.at(terms, layer.reads, by_input((weight.detach() * gradient).double(), layer))
    return terms


def by_input(values: Tensor, layer: Layer) -> np.ndarray:
    """Values (out, in ÷ groups, …) of a layer's weights, summed for each of its inputs: (in,)."""
    blocks = values.flatten(2).sum(2) if values.dim() > 2 else values
    return blocks.unflatten(0, (layer.groups, -1)).sum(1).flatten().cpu().numpy()


def readers(coupling: Coupling) -> list[Layer]:
    """Layers that mix what they read. A depth-wise one only hands its channels on to those."""
    return [layer for layer in coupling.layers.values() if not layer.depthwise]


@contextmanager
def _requiring_grad(weights: Iterable[Tensor]) -> Iterator[None]:
    """Frozen weights take part in the gradient for a while."""
    frozen = [weight for weight in weights if not weight.requires_grad]
    try:
        for weight in frozen:
            weight.requires_grad_(True)
        yield
    finally:
        for weight in frozen:
            weight.requires_grad_(False)
