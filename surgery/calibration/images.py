"""The images of a calibration, in an order and in batches that do not depend on how they were given."""

import hashlib
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from surgery.core.errors import is_whole

BATCH = 32


def collect(batches: Iterable[Any] | Tensor, limit: int | None = None, progress: bool = False) -> list[Tensor]:
    """Images as batches of 32, sorted by a digest of their content.

    Args:
        batches: a tensor (N, C, H, W), or an iterable (a loader) of such tensors or of tuples that begin with one.
        limit: of images drawn; None takes all.
        progress: show a bar where it takes more than a second.

    Raises:
        TypeError: something else is given.
        ValueError: a limit below 1, no image, images of several shapes, or NaN or infinity in one.
    """
    if not isinstance(batches, Iterable) or isinstance(batches, str | bytes):
        raise TypeError(f"calibration images are {batches!r}: a tensor (N, C, H, W), or a loader of such, is needed")
    if limit is not None and not is_whole(limit, 1):
        raise ValueError(f"images={limit!r}: a whole number >= 1, or None for all, is needed")
    images: list[Tensor] = []
    whole = [batches] if isinstance(batches, Tensor) else batches
    bar = tqdm(whole, "reading images", unit="batch", leave=False, delay=1, disable=not progress)
    for number, batch in enumerate(bar):
        tensor = batch[0] if isinstance(batch, tuple | list) and batch else batch
        if not isinstance(tensor, Tensor) or tensor.ndim != 4 or not tensor.is_floating_point():
            raise TypeError(
                f"batch {number} of the calibration images is {_described(tensor)}: floats (N, C, H, W), prepared as "
                f"the network takes them, are needed{_advice(tensor)}"
            )
        if images and tensor.shape[1:] != images[0].shape:
            raise ValueError(
                f"batch {number} of the calibration images has the shape {tuple(tensor.shape)} where the first image "
                f"has {tuple(images[0].shape)}: one size is needed"
            )
        if not torch.isfinite(tensor).all():
            raise ValueError(f"batch {number} of the calibration images holds NaN or infinity")
        images += tensor.detach().unbind()
        if limit is not None and len(images) >= limit:
            break
    if not images:
        raise ValueError("there are no calibration images")
    images = images[:limit]
    if all(bool((image == image.flatten(1)[:, :1, None]).all()) for image in images):
        warnings.warn(
            f"every calibration image is of one colour (the first one's largest value is {images[0].max():g}): nothing "
            "can be learnt from these; were they loaded?",
            stacklevel=3,
        )
    images = sorted(images, key=_digest)
    return [torch.stack(images[i : i + BATCH]) for i in range(0, len(images), BATCH)]


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


def _digest(image: Tensor) -> bytes:
    content = image.cpu().contiguous()
    return hashlib.blake2b(content.view(torch.uint8).numpy().data, digest_size=16).digest()
