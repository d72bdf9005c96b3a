"""What the surgery layers of a network read, batch after batch, and which of them to show."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from tqdm import tqdm

from surgery.core.checked_model import first_weight
from surgery.core.eval_mode import eval_mode
from surgery.core.surgery_layer import SurgeryLayer

Look = Callable[[str, SurgeryLayer, Tensor], None]


def watch_layers(model: nn.Module, method: str, images: Tensor, batch_size: int, look: Look) -> None:
    """Call ``look`` with name, layer and input (n, C, H, W) of every surgery layer that has its own ``method``.

    Of a layer that runs several times in a forward, the first call.

    Args:
        method: name of one of :class:`SurgeryLayer`.
        images: (N, C, H, W), which the network looks at in batches.
    """
    base, done = getattr(SurgeryLayer, method), set[str]()

    def note(name: str, layer: SurgeryLayer, x: Tensor) -> None:
        if name not in done:
            done.add(name)
            look(name, layer, x)

    handles = [
        layer.register_forward_pre_hook(
            lambda layer, args, kwargs, name=name: note(name, layer, next(iter((*args, *kwargs.values())))),
            with_kwargs=True,
        )
        for name, layer in model.named_modules()
        if isinstance(layer, SurgeryLayer) and getattr(type(layer), method) is not base
    ]
    weight = first_weight(model)
    try:
        with eval_mode(model), torch.no_grad():
            batches = images.split(batch_size) if handles else ()
            for batch in tqdm(batches, method.replace("_", " "), unit="batch", leave=False, disable=len(batches) < 2):
                done.clear()
                model(batch.to(weight))
    finally:
        for handle in handles:
            handle.remove()


def last_of_stages(names: Sequence[str]) -> list[str]:
    """The last layer of each stage: layers whose names differ from the last number on (``layer1.2.conv1``)."""
    return list({_stage(name): name for name in names}.values())


def _stage(name: str) -> str:
    parts = name.split(".")
    numbers = [position for position, part in enumerate(parts) if part.isdecimal()]
    return ".".join(parts[: numbers[-1]]) if numbers else name


def evenly(names: Sequence[str], most: int) -> list[str]:
    """At most so many, from the first to the last."""
    if len(names) <= most:
        return list(names)
    return [names[round(i * (len(names) - 1) / (most - 1))] for i in range(most)]


def shown_layers(names: Sequence[str], most: int) -> list[str]:
    """At most so many: the last of each stage, and of the others some, evenly; in their order."""
    lasts = evenly(last_of_stages(names), most)
    others = [name for name in names if name not in lasts]
    room = min(most - len(lasts), len(others))
    chosen = {*lasts, *(others[(2 * i + 1) * len(others) // (2 * room)] for i in range(room))}
    return [name for name in names if name in chosen]
