"""Convolutions of some output channels from some input channels, image by image: what FBS does at inference."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

WORTH_GATHERING = 0.75  # share of active inputs below which a map without the rest is made


class Link:
    """Hands the active channels of a compact map from the layer that gives it to the only one that reads it.

    Both hold the same link, also in copies and pickles of their model. Threads that run one model do not meet.
    """

    def __init__(self) -> None:
        self._local = threading.local()

    def give(self, indices: Tensor) -> None:
        """``indices``: (N, k), of the map that the layer returns next."""
        self._local.indices = indices

    def take(self) -> Tensor:
        """What was given last."""
        indices: Tensor = self._local.indices
        return indices

    def __reduce__(self) -> tuple[type["Link"], tuple[()]]:
        return Link, ()


@dataclass(frozen=True)
class Filters:
    """A convolution's weight (C_out, C_in, kh, kw), bias (C_out,) or None, and how it is laid over the map."""

    weight: Tensor
    bias: Tensor | None
    stride: tuple[int, int]
    padding: Any
    dilation: tuple[int, int]

    def __call__(self, x: Tensor, outputs: Tensor | None = None, inputs: Tensor | None = None) -> Tensor:
        """(N, k_out, H', W') from (N, k_in, H, W): the filters ``outputs``, each of its channels ``inputs`` alone."""
        weight, bias = self.weight, self.bias
        if outputs is not None:
            weight = _rows(weight, outputs)
            bias = None if bias is None else bias.index_select(0, outputs)
        if inputs is not None:
            weight = selected(weight, inputs)
        return F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation)


def same_sets(*indices: Tensor | None) -> Iterator[tuple[list[int], list[Tensor | None]]]:
    """Images whose active channels agree: their numbers, and the rows of ``indices`` (N, k) that they share.

    Args:
        *indices: at least one is no None.
    """
    present = [index for index in indices if index is not None]
    images: dict[tuple[int, ...], list[int]] = {}
    rows = torch.cat(present, 1).tolist() if len(present[0]) > 1 else [()]
    for number, row in enumerate(rows):
        images.setdefault(tuple(row), []).append(number)
    for numbers in images.values():
        yield numbers, [None if index is None else index[numbers[0]] for index in indices]


def _rows(weight: Tensor, rows: Tensor) -> Tensor:
    """``weight.index_select(0, rows)``, in the layout of ``weight``, whose rows are copied whole."""
    if weight.is_contiguous():
        return weight.index_select(0, rows)
    return weight.permute(0, 2, 3, 1).index_select(0, rows).permute(0, 3, 1, 2)


def selected(x: Tensor, channels: Tensor) -> Tensor:
    """``x.index_select(1, channels)`` of (N, C, H, W), in the layout of ``x``."""
    if x.is_contiguous():
        return x.index_select(1, channels)
    rows = x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])  # in two dimensions it is five times as fast as in four
    return rows.gather(1, channels.expand(len(rows), -1)).reshape(len(x), *x.shape[2:], -1).permute(0, 3, 1, 2)


def scattered(x: Tensor, indices: Tensor, channels: int) -> Tensor:
    """(N, channels, H, W) with the channels of a compact map (N, k, H, W) where ``indices`` (N, k) say, zeros else."""
    if x.device.type != "cpu":
        full = torch.zeros_like(x[:, :1]).repeat(1, channels, 1, 1)
        return full.scatter_(1, indices[:, :, None, None].expand_as(x), x)
    if x.is_contiguous():
        full = x.new_zeros((len(x), channels, *x.shape[2:]))
        for image, compact, row in zip(full, x, indices, strict=True):
            image.index_copy_(0, row, compact)
        return full
    full = x.new_zeros((len(x), x.shape[2] * x.shape[3], channels))
    for image, compact, row in zip(full, x.permute(0, 2, 3, 1).flatten(1, 2), indices, strict=True):
        image.scatter_(1, row.expand(len(image), -1), compact)
    return full.reshape(len(x), *x.shape[2:], channels).permute(0, 3, 1, 2)
