"""Preparation of an image together with its saliency mask, by torchvision's functions."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import default_collate
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from surgery.training.recipe import DataSettings
from surgery.vision.preprocessing import Preprocessing

CROP = 15  # pixels at most that are cut off each side, as CSNet was trained; of a small image a quarter of its length


def saliency_preprocessing(settings: DataSettings) -> Preprocessing:
    """How a network that finds salient objects is given images, in training, testing and afterwards."""
    size = (3, settings.image_size, settings.image_size)
    return Preprocessing(size, settings.mean, settings.std, interpolation=settings.interpolation)


def saliency_transform(
    settings: DataSettings, training: bool
) -> Callable[[Image.Image, Tensor], tuple[Tensor, Tensor]]:
    """From a PIL image and its mask, uint8 (H, W), to float32 (3, S, S), normalised, and a mask.

    For training both are cropped, mirrored and resized (the mask bilinearly: float32 (S, S), from 0 to 1); for testing
    the mask stays as it is, for maps are judged at its size.
    """
    prepared = saliency_preprocessing(settings).resized_image()
    if not training:
        return lambda image, mask: (prepared(image), mask)
    side = [settings.image_size, settings.image_size]
    jitter = v2.ColorJitter(*[settings.color_jitter] * 3)

    def transform(image: Image.Image, mask: Tensor) -> tuple[Tensor, Tensor]:
        pair = _mirrored(_cropped((image, mask[None])), settings)
        soft = functional.resize(pair[1].float() / 255, side, antialias=True)
        return prepared(jitter(pair[0])), soft[0].clamp(0, 1)

    return transform


def _cropped(pair: Sequence[Any]) -> Sequence[Any]:
    height, width = pair[1].shape[-2:]
    top, bottom = _cuts(height)
    left, right = _cuts(width)
    return [functional.crop(part, top, left, height - top - bottom, width - left - right) for part in pair]


def _cuts(length: int) -> list[int]:
    """Pixels that are cut off both ends of a side."""
    return torch.randint(0, min(CROP, length // 4) + 1, (2,)).tolist()


def _mirrored(pair: Sequence[Any], settings: DataSettings) -> Sequence[Any]:
    drawn = float(torch.rand(()))
    if drawn < settings.hflip:
        return [functional.horizontal_flip(part) for part in pair]
    if drawn < settings.hflip + settings.vflip:
        return [functional.vertical_flip(part) for part in pair]
    return pair


def with_masks_apart(items: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, list[Tensor]]:
    """Test images as one batch, float32 (N, 3, S, S), with a list of their masks, which differ in size."""
    images, masks = zip(*items, strict=True)
    return default_collate(list(images)), list(masks)
