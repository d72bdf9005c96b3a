"""What a network with layers that compute less for some images really computes, on the images that it is run on."""

import contextlib
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from surgery.core.surgery_layer import SurgeryLayer


class ComputedMacs:
    """Differences between what layers computed and what :func:`surgery.cost` counts of them at most."""

    def __init__(self) -> None:
        self._differences: dict[nn.Module, float] = defaultdict(float)
        self._images: dict[nn.Module, int] = defaultdict(int)

    @property
    def difference(self) -> float:
        """Multiply-accumulates by which a forward differs from the count, mean over the images; <= 0."""
        return float(sum(total / self._images[layer] for layer, total in self._differences.items()))

    def note(self, layer: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
        """A forward hook."""
        if not isinstance(layer, SurgeryLayer) or not isinstance(output, Tensor):
            return
        x = next(iter((*arguments, *named.values())))
        if x.ndim == 3:
            x, output = x[None], output[None]
        computed = layer.computed_macs(x, output)
        if computed is not None:
            counted = layer.cost(tuple(x.shape), tuple(output.shape)).macs
            self._differences[layer] += float((computed.double() - counted).sum())
            self._images[layer] += len(x)


@contextlib.contextmanager
def counting_macs(model: nn.Module) -> Iterator[ComputedMacs]:
    """Watch a network's forwards; in several processes each watches its own.

    Example:
        >>> with counting_macs(model) as computed:
        ...     model(images)
        >>> surgery.cost(model).macs + computed.difference
    """
    computed = ComputedMacs()
    dynamic = [
        layer
        for layer in model.modules()
        if isinstance(layer, SurgeryLayer) and type(layer).computed_macs is not SurgeryLayer.computed_macs
    ]
    hooks = [layer.register_forward_hook(computed.note, with_kwargs=True) for layer in dynamic]
    try:
        yield computed
    finally:
        for hook in hooks:
            hook.remove()
