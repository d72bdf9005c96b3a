"""Where in an image a network sees a class: Grad-CAM (Selvaraju et al., ICCV 2017), by the library grad-cam."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from surgery.core.eval_mode import eval_mode
from surgery.core.extras import check_extra
from surgery.graph import record
from surgery.mimicry.feature_map import pooled_map
from surgery.transforms.modules_by_name import submodule


def map_layer(model: nn.Module, shape: tuple[int, ...], name: str | None = None) -> str:
    """Name of the module that gives the last feature map before the global pooling.

    Args:
        shape: (C, H, W) of an image.
        name: of another module, to be checked.

    Raises:
        ValueError: there is no such module, or none gives that map.
    """
    if name is not None:
        if name not in dict(model.named_modules()):
            raise ValueError(f"--layer {name!r}: the name of a module of {type(model).__name__} is needed")
        return name
    pooled = pooled_map(record(model, shape))
    if pooled is not None and pooled[0].output:
        return pooled[0].module
    owners = [] if pooled is None else _blocks_before(model, pooled[0].module)
    if not owners:
        raise ValueError(f"{type(model).__name__} pools no map that a module gives: --layer NAME is needed")
    return owners[-1]


def _blocks_before(model: nn.Module, reader: str) -> list[str]:
    """Modules that end right before another one begins, in the order of the model."""
    names = [name for name, _ in model.named_modules() if name]
    position = names.index(reader)
    return [name for name in names[:position] if not reader.startswith(f"{name}.")]


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

    weight = next(model.parameters())
    module: nn.Module = submodule(model, layer)
    maps, probabilities = [], []
    with eval_mode(model), torch.enable_grad(), GradCAM(model, [module]) as cam:
        for image, number in zip(images.to(weight), classes, strict=True):
            maps.append(cam(input_tensor=image[None], targets=[ClassifierOutputTarget(number)])[0])
            probabilities.append(float(cam.outputs.detach().float().softmax(1)[0, number]))
    model.zero_grad(set_to_none=True)
    return np.stack(maps), probabilities


def best_classes(model: nn.Module, images: Tensor, batch_size: int) -> list[int]:
    """The output that a network thinks likeliest, for each image."""
    weight = next(model.parameters())
    with eval_mode(model), torch.no_grad():
        return [int(n) for batch in images.split(batch_size) for n in model(batch.to(weight)).argmax(1)]
