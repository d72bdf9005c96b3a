"""Where in an image a network sees a class: Grad-CAM (Selvaraju et al., ICCV 2017), by the library grad-cam."""

import difflib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from surgery.core.checked_model import first_weight
from surgery.core.eval_mode import eval_mode
from surgery.core.extras import check_extra
from surgery.graph import ModelGraph, record
from surgery.mimicry.feature_map import pooled_map


def map_layer(model: nn.Module, shape: tuple[int, ...], name: str | None = None) -> str:
    """Name of the module that gives the last feature map before the global pooling.

    Args:
        shape: (C, H, W) of an image.
        name: of another module, to be checked.

    Raises:
        ValueError: there is no such module, or none gives that map.
    """
    maps = _maps(model, shape)
    if name is not None:
        if name not in maps:
            near = difflib.get_close_matches(name, maps, 3) or list(maps)[-3:]
            raise ValueError(
                f"--layer {name!r}: a module of {type(model).__name__} that gives one map (N, C, H, W) is needed, such "
                f"as {', '.join(near)}"
            )
        return name
    graph = record(model, shape)
    pooled = pooled_map(graph)
    if pooled is not None and pooled[0].output:
        return pooled[0].module
    # a tensor that no module gives, such as that of a ReLU called as a function: the last module with such a map
    alike = [layer for layer, size in maps.items() if size == _pooled_shape(graph)]
    if not alike:
        raise ValueError(f"{type(model).__name__} pools no map that a module gives: --layer NAME is needed")
    return alike[-1]


def _pooled_shape(graph: ModelGraph) -> tuple[int, ...]:
    """(C, H, W) of what the last global pooling reads; () where there is none."""
    pools = [node for node in graph if node.meta.get("kind") == "global_pool" and node.all_input_nodes]
    return tuple(pools[-1].all_input_nodes[0].meta.get("shape", ())[1:]) if pools else ()


def _maps(model: nn.Module, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """(C, H, W) of the maps that modules give, by name, in the order in which they are ready."""
    seen: dict[str, tuple[int, ...]] = {}

    def note(name: str, output: object) -> None:
        if isinstance(output, Tensor) and output.ndim == 4:
            seen[name] = tuple(output.shape[1:])

    handles = [
        module.register_forward_hook(lambda _, args, output, name=name: note(name, output))
        for name, module in model.named_modules()
        if name
    ]
    try:
        with eval_mode(model), torch.no_grad():
            model(torch.zeros(1, *shape).to(first_weight(model)))
    finally:
        for handle in handles:
            handle.remove()
    return seen


def class_activation(
    model: nn.Module, images: Tensor, classes: Sequence[int], layer: str
) -> tuple[np.ndarray, list[float]]:
    """Maps (N, H, W) in [0, 1] of what speaks for a class, and the probability that the network gives it.

    Args:
        classes: number of an output for each image.
        layer: name of the module whose map is weighed.

    Raises:
        MissingPackageError: grad-cam is not installed.
    """
    check_extra("explain", "Grad-CAM")
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    weight, maps, probabilities = first_weight(model), [], []
    bar = tqdm(images.to(weight), "Grad-CAM", unit="image", leave=False)
    with eval_mode(model), _gradients(model), GradCAM(model, [model.get_submodule(layer)]) as cam:
        for image, number in zip(bar, classes, strict=True):
            maps.append(cam(input_tensor=image[None], targets=[ClassifierOutputTarget(number)])[0])
            probabilities.append(float(cam.outputs.detach().float().softmax(1)[0, number]))
    return np.stack(maps), probabilities


@contextmanager
def _gradients(model: nn.Module) -> Iterator[None]:
    """While entered, every parameter has a gradient; afterwards what it had."""
    before = [(parameter, parameter.requires_grad, parameter.grad) for parameter in model.parameters()]
    try:
        with torch.enable_grad():
            for parameter, _, _ in before:
                parameter.requires_grad_(True)
            yield
    finally:
        for parameter, required, gradient in before:
            parameter.requires_grad_(required)
            parameter.grad = gradient


def best_classes(model: nn.Module, images: Tensor, batch_size: int) -> list[int]:
    """The output that a network thinks likeliest, for each image."""
    weight = first_weight(model)
    with eval_mode(model), torch.no_grad():
        return [int(n) for batch in images.split(batch_size) for n in model(batch.to(weight)).argmax(1)]
