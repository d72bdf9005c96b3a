"""The images of a calibration, in an order and in batches that do not depend on how they were given."""

import hashlib
import warnings
from collections.abc import Iterable, Sized
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from surgery.core.errors import is_whole
from surgery.core.image_batches import read_batches

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
    if limit is not None and not is_whole(limit, 1):
        raise ValueError(f"images={limit!r}: a whole number >= 1, or None for all, is needed")
    images: list[Tensor] = []
    read = read_batches(batches, "calibration images")
    length = len(batches) if isinstance(batches, Sized) and not isinstance(batches, Tensor) else None
    bar = tqdm(read, "reading images", length, unit="batch", leave=False, delay=1, disable=not progress)
    for number, (tensor, _) in enumerate(bar):
        if images and tensor.shape[1:] != images[0].shape:
            raise ValueError(
                f"batch {number} of the calibration images has the shape {tuple(tensor.shape)} where the first image "
                f"has {tuple(images[0].shape)}: one size is needed"
            )
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


def _digest(image: Tensor) -> bytes:
    content = image.cpu().contiguous()
    return hashlib.blake2b(content.view(torch.uint8).numpy().data, digest_size=16).digest()
