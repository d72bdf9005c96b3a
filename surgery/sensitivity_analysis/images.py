"""The images of a sensitivity: those that parts are fitted on, and those that judge."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from surgery.core.errors import is_whole
from surgery.core.image_batches import read_batches

BATCH = 32
LEAST = 8
JUDGE = 4  # every fourth image judges


@dataclass(frozen=True)
class Images:
    """Images in batches.

    Attributes:
        batches: (N, C, H, W) each.
        labels: of each batch, (N,) or (N, H, W) int64; None where there are none.
    """

    batches: list[Tensor] = field(repr=False)
    labels: list[Tensor] | None = field(default=None, repr=False)

    @property
    def count(self) -> int:
        """How many images."""
        return sum(map(len, self.batches))

    @property
    def all_labels(self) -> Tensor | None:
        """Of all images together."""
        return None if self.labels is None else torch.cat(self.labels)

    def evidence(self) -> list[Any]:
        """Batches, or pairs with labels where there are some."""
        return self.batches if self.labels is None else list(zip(self.batches, self.labels, strict=True))


def split_images(batches: Iterable[Any] | Tensor, limit: int | None = None) -> tuple[Images, Images]:
    """Images for fitting, and every fourth one for judging, with their labels where all have one.

    Raises:
        TypeError, ValueError: as for any images; fewer than 8, or of several shapes.
    """
    if limit is not None and not is_whole(limit, LEAST):
        raise ValueError(f"count={limit!r}: a whole number >= {LEAST}, or None for all, is needed")
    images: list[Tensor] = []
    labels: list[Tensor] = []
    for tensor, further in read_batches(batches, "images"):
        if images and tensor.shape[1:] != images[0].shape:
            shapes = f"{tuple(images[0].shape)} and {tuple(tensor.shape[1:])}"
            raise ValueError(f"images of the shapes {shapes}: one is needed")
        images += tensor.detach().unbind()
        labels += _labels_of(tensor, further)
        if limit is not None and len(images) >= limit:
            break
    images = images[:limit]
    if len(images) < LEAST:
        raise ValueError(f"{len(images)} images: at least {LEAST} are needed to fit on and to judge by")
    judging = [number for number in range(len(images)) if number % JUDGE == 0]
    fitting = [number for number in range(len(images)) if number % JUDGE]
    told = labels if len(labels) >= len(images) else None
    return _chosen(images, told, fitting), _chosen(images, told, judging)


def _labels_of(tensor: Tensor, further: tuple[Any, ...]) -> list[Tensor]:
    own = further[0] if further else None
    if isinstance(own, Tensor) and own.ndim and len(own) == len(tensor) and not own.is_floating_point():
        return list(own.long().unbind())
    return []


def _chosen(images: list[Tensor], labels: list[Tensor] | None, numbers: list[int]) -> Images:
    told = None if labels is None else _stacked([labels[number] for number in numbers])
    return Images(_stacked([images[number] for number in numbers]), told)


def _stacked(tensors: list[Tensor]) -> list[Tensor]:
    return [torch.stack(tensors[first : first + BATCH]) for first in range(0, len(tensors), BATCH)]
