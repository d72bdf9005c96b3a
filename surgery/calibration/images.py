"""The images of a calibration, in an order and in batches that do not depend on how they were given."""

import hashlib
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

BATCH = 32


def collect(batches: Iterable[Any] | Tensor, limit: int | None = None) -> list[Tensor]:
    """Images as batches of 32, sorted by a digest of their content.

    Args:
        batches: a tensor (N, C, H, W), or an iterable (a loader) of such tensors or of tuples that begin with one.
        limit: of images drawn; None takes all.

    Raises:
        TypeError: something else is given.
        ValueError: no image, images of several shapes, or NaN or infinity in one.
    """
    images: list[Tensor] = []
    for number, batch in enumerate([batches] if isinstance(batches, Tensor) else batches):
        tensor = batch[0] if isinstance(batch, tuple | list) and batch else batch
        if not isinstance(tensor, Tensor) or tensor.ndim != 4 or not tensor.is_floating_point():
            found = f"{tensor.dtype} of shape {tuple(tensor.shape)}" if isinstance(tensor, Tensor) else type(tensor)
            raise TypeError(f"batch {number} of the calibration images is {found}: floats (N, C, H, W) are needed")
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
    images = sorted(images[:limit], key=_digest)
    return [torch.stack(images[i : i + BATCH]) for i in range(0, len(images), BATCH)]


def _digest(image: Tensor) -> bytes:
    content = image.cpu().contiguous()
    return hashlib.blake2b(content.view(torch.uint8).numpy().data, digest_size=16).digest()
