"""How an FBS layer computes its kept channels.

A model as it is converted or loaded leaves channels out for one image and masks them for more, so that it gives the
same numbers whenever it runs. A copy that :func:`surgery.optimize_for_inference` made takes the fastest form, which the
first call with inputs of a kind finds out:

- ``dense``: all channels, then masked.
- ``images``: images with the same active channels together, filters gathered for them.
- ``grouped``: the filters of all images gathered, one convolution with a group for each image; no device waits.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from surgery.methods.fbs.skipping import WORTH_GATHERING, same_sets, scattered, selected
from surgery.methods.fbs.winner_take_all import active_indices, mean_saliency, winners

if TYPE_CHECKING:
    from surgery.methods.fbs.layer import FBSConv2d

ROUNDS = 3
FEWEST_PLACES = 16  # of an output map: below, gathering a filter takes longer than applying it to them


@dataclass
class Execution:
    """The form that was fastest, by all that it depends on; or one form, whatever was measured."""

    form: str | None = None
    fastest: dict[Any, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Task:
    """What one forward has to compute.

    Attributes:
        x: (N, C, H, W), or (N, k, H, W) of its channels ``inputs`` (N, k).
        pooled: (N, C), mean|x|.
        saliency: (N, C_out).
        outputs: (N, count), the winners, in ascending order.
        factors: (N, count), what these are multiplied by.
    """

    layer: "FBSConv2d"
    x: Tensor
    inputs: Tensor | None
    pooled: Tensor
    saliency: Tensor
    outputs: Tensor
    factors: Tensor

    @property
    def key(self) -> tuple[Any, ...]:
        """What the speed of the forms depends on."""
        x = self.x
        return tuple(x.shape), x.dtype, x.device.type, x.is_contiguous(), torch.get_num_threads(), self.layer.count


def may_skip(layer: "FBSConv2d", x: Tensor) -> bool:
    """Whether a forward may leave channels out: in eval mode, without gradients, on a tensor with numbers."""
    if layer.training or layer.count == layer.out_channels or torch.compiler.is_compiling():
        return False
    if torch._C._are_functorch_transforms_active():  # under vmap no image has numbers of its own
        return False
    if type(x) is not Tensor or x.device.type not in ("cpu", "cuda") or torch.jit.is_tracing() or not len(x):
        return False
    if layer.norm is not None and (layer.norm.training or layer.norm.running_mean is None):
        return False
    return not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (x, *layer.parameters())))


def computed(layer: "FBSConv2d", x: Tensor, inputs: Tensor | None, pooled: Tensor, saliency: Tensor) -> Tensor:
    """The layer's output, of its kept channels alone.

    Returns:
        (N, C_out, H', W'); of a layer that hands compact maps on, (N, count, H', W').
    """
    outputs = winners(saliency, layer.count)
    factors = saliency.gather(1, outputs)
    if layer.placement == "output":
        factors = factors / mean_saliency(saliency)
    task = Task(layer, x, inputs, pooled, saliency, outputs, factors)
    execution = layer._execution
    form = execution.form or (execution.fastest.get(task.key) if layer.compact else _steady(task))
    if form is None:
        form = execution.fastest[task.key] = _measured(task)
    return FORMS[form](task)


def _steady(task: Task) -> str:
    """The form of a model that is not prepared for inference: skipping where it is sure to pay, for one image."""
    if task.x.device.type == "cuda":
        return "grouped" if len(task.x) == 1 else "dense"
    height, width = task.x.shape[2] // task.layer.stride[0], task.x.shape[3] // task.layer.stride[1]
    return "images" if len(task.x) == 1 and height * width >= FEWEST_PLACES else "dense"


def _measured(task: Task) -> str:
    if task.x.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        return "grouped"
    seconds = {name: [_seconds(task, form) for _ in range(ROUNDS + 1)][1:] for name, form in FORMS.items()}
    return min(seconds, key=lambda name: min(seconds[name]))


def _seconds(task: Task, form: Callable[[Task], Tensor]) -> float:
    wait = torch.cuda.synchronize if task.x.device.type == "cuda" else (lambda: None)
    wait()
    begin = time.perf_counter()
    form(task)
    wait()
    return time.perf_counter() - begin


def _dense(task: Task) -> Tensor:
    layer = task.layer
    mask = torch.zeros_like(task.saliency, dtype=torch.bool).scatter_(1, task.outputs, True)
    y = layer.dense(task.x, task.inputs, mask, layer.factors(task.saliency, mask))
    if not _hands_on(layer):
        return y
    return _handed(task, torch.gather(y, 1, task.outputs[:, :, None, None].expand(-1, -1, *y.shape[2:])))


def _images(task: Task) -> Tensor:
    """Image by image; but those that share their active channels together."""
    parts, numbers = [], []
    for images, (outputs, inputs) in same_sets(task.outputs, _active_inputs(task)):
        assert outputs is not None
        x, factors = (task.x, task.factors) if len(images) == len(task.x) else (task.x[images], task.factors[images])
        if inputs is not None and task.inputs is None:
            inputs = inputs[inputs >= 0]  # noqa: PLW2901
            x = selected(x, inputs)
        y = task.layer.filters(x, outputs, inputs)
        parts.append(task.layer.activated(y, factors, outputs))
        numbers += images
    y = parts[0] if len(parts) == 1 else torch.cat(parts)[torch.tensor(numbers).argsort()]
    return _finished(task, y)


def _active_inputs(task: Task) -> Tensor | None:
    """Numbers of the input channels that are not zero (N, k), a row filled up with −1; None where most are active."""
    if task.inputs is not None or task.x.device.type != "cpu":
        return task.inputs
    active = task.pooled > 0
    counts = active.sum(1)
    longest = int(counts if len(counts) == 1 else counts.max())
    if longest > WORTH_GATHERING * task.layer.in_channels:
        return None
    longest = max(1, longest)
    indices = active_indices(active, longest)
    return indices.masked_fill(torch.arange(longest) >= counts.clamp_min(1)[:, None], -1)


def _grouped(task: Task) -> Tensor:
    """All images in one convolution, a group each, whose filters are gathered."""
    layer, x, count = task.layer, task.x, len(task.x)
    weight = layer.weight[task.outputs] if task.inputs is None else _filters_of(task)
    filters = layer.filters
    bias = None if filters.bias is None else filters.bias[task.outputs].flatten()
    flat = x.reshape(1, -1, *x.shape[2:])
    y = F.conv2d(flat, weight.flatten(0, 1), bias, filters.stride, filters.padding, filters.dilation, count)
    y = y.reshape(count, layer.count, *y.shape[2:])
    return _finished(task, _activated_each(task, y))


def _filters_of(task: Task) -> Tensor:
    assert task.inputs is not None
    return task.layer.weight[task.outputs[:, :, None], task.inputs[:, None, :]]


def _activated_each(task: Task, y: Tensor) -> Tensor:
    """Norm, activation and boosting where each image has its own channels: as one image of N · count channels."""
    flat = y.reshape(1, -1, *y.shape[2:])
    return task.layer.activated(flat, task.factors.flatten()[None], task.outputs.flatten()).reshape(y.shape)


def _hands_on(layer: "FBSConv2d") -> bool:
    return layer.compact and layer.gives is not None


def _finished(task: Task, y: Tensor) -> Tensor:
    return _handed(task, y) if _hands_on(task.layer) else scattered(y, task.outputs, task.layer.out_channels)


def _handed(task: Task, y: Tensor) -> Tensor:
    assert task.layer.gives is not None
    task.layer.gives.give(task.outputs)
    return y


FORMS: dict[str, Callable[[Task], Tensor]] = {"dense": _dense, "images": _images, "grouped": _grouped}
