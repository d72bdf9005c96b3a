"""Batches of images that a user passes: read one after the other, each checked."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor


def read_batches(batches: Any, name: str) -> Iterator[tuple[Tensor, tuple[Any, ...]]]:
    """The images of each batch, and what came with them.

    Args:
        batches: a tensor (N, C, H, W), or an iterable (a loader) of such tensors or of tuples that begin with one.
        name: what messages call them.

    Yields:
        (N, C, H, W) of a floating dtype, finite; and the rest of the tuple. Batches of no image are left out.

    Raises:
        TypeError: something else is given, naming the batch.
        ValueError: NaN or infinity in an image.
    """
    if not isinstance(batches, Iterable) or isinstance(batches, str | bytes):
        raise TypeError(f"{name} are {batches!r}: a tensor (N, C, H, W), or a loader of such, is needed")
    for number, batch in enumerate([batches] if isinstance(batches, Tensor) else batches):
        tensor, *further = batch if isinstance(batch, tuple | list) and batch else (batch,)
        if not isinstance(tensor, Tensor) or tensor.ndim != 4 or not tensor.is_floating_point():
            raise TypeError(
                f"batch {number} of the {name} is {_described(tensor)}: floats (N, C, H, W), prepared as the network "
                f"takes them, are needed{_advice(tensor)}"
            )
        if not torch.isfinite(tensor).all():
            raise ValueError(f"batch {number} of the {name} holds NaN or infinity")
        if len(tensor):
            yield tensor, tuple(further)


def _described(value: object) -> str:
    if isinstance(value, Tensor):
        return f"{value.dtype} of shape {tuple(value.shape)}"
    if isinstance(value, Mapping):
        return f"a {type(value).__name__} with {', '.join(map(repr, list(value)[:5]))}"
    return f"of type {type(value).__name__}"


def _advice(value: object) -> str:
    """What would make images of it, where that is known."""
    if isinstance(value, Mapping):
        key = next((k for k, v in value.items() if isinstance(v, Tensor) and v.ndim == 4), "image")
        return f": pass (batch[{key!r}] for batch in loader)"
    if not isinstance(value, Tensor):
        return ": torch.from_numpy makes a tensor of an array" if hasattr(value, "__array__") else ""
    if not value.is_floating_point():
        return ": scale and normalise them first"
    return ": of a single image image[None] makes a batch, of several torch.stack" if value.ndim == 3 else ""
