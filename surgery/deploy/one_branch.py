"""Layers that choose between two computations, with the one that they chose on all images of a sample."""

import json
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from tqdm import tqdm

from surgery.core.surgery_layer import SurgeryLayer, replace_layers

ONE_BRANCH = "one_branch"


@torch.no_grad()
def one_branch(model: nn.Module, batches: Iterable[Tensor], progress: bool = False) -> dict[str, str]:
    """Specialise the layers of a model in place to what they did on every image, in eval mode.

    Args:
        batches: images (N, C, H, W), as the model takes them; brought to its device and dtype.

    Returns:
        For a file's metadata: under ``one_branch`` a JSON object with the number of ``images`` and the names of the
        ``layers``; empty where no layer was specialised.

    Raises:
        ValueError: no images.
        TypeError: a batch that is no tensor.
    """
    replace_layers(model, lambda layer: layer.folded() or layer)
    names = {layer: name for name, layer in model.named_modules() if isinstance(layer, SurgeryLayer)}
    observed, images = _observed(model, list(names), batches, progress)
    special = {layer: layer.specialised(torch.cat(rows)) for layer, rows in observed.items() if rows}
    replace_layers(model, lambda layer: special.get(layer) or layer)
    done = [names[layer] for layer, other in special.items() if other is not None]
    return {ONE_BRANCH: json.dumps({"images": images, "layers": done})} if done else {}


def _observed(
    model: nn.Module, layers: list[SurgeryLayer], batches: Iterable[Tensor], progress: bool
) -> tuple[dict[SurgeryLayer, list[Tensor]], int]:
    """What each layer observed of every image, batch by batch, and how many images there were."""
    rows: dict[SurgeryLayer, list[Tensor]] = {layer: [] for layer in layers}

    def note(layer: nn.Module, arguments: tuple[object, ...]) -> None:
        assert isinstance(layer, SurgeryLayer)
        seen = layer.observe(arguments[0]) if arguments and isinstance(arguments[0], Tensor) else None
        rows[layer] += [] if seen is None else [seen]

    weight = next(model.parameters(), torch.empty(0))
    hooks = [layer.register_forward_pre_hook(note) for layer in layers]
    count = 0
    try:
        for batch in tqdm(batches, desc="observing branches", leave=False, disable=not progress):
            if not isinstance(batch, Tensor) or batch.ndim != 4:
                raise TypeError(f"branches holds a {type(batch).__name__}: batches of images (N, C, H, W) are needed")
            model(batch.to(weight.device, weight.dtype))
            count += len(batch)
    finally:
        for hook in hooks:
            hook.remove()
    if not count:
        raise ValueError("branches holds no images: at least one batch (N, C, H, W) is needed")
    return rows, count
