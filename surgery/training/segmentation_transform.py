"""Augmentation of an image together with its label map, by torchvision's transforms."""

from collections.abc import Callable

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from surgery.training.recipe import DataSettings
from surgery.vision.label_maps import UNLABELLED


def segmentation_transform(
    settings: DataSettings, training: bool
) -> Callable[[Image.Image, Tensor], tuple[Tensor, Tensor]]:
    """From a PIL image and labels, uint8 (H, W), to float32 (3, h, w), normalised, and int64 (h, w)."""
    last = [v2.ToDtype({tv_tensors.Image: torch.float32, tv_tensors.Mask: torch.int64}, scale=True)]
    steps = v2.Compose(
        [*(_augmentation(settings) if training else []), *last, v2.Normalize(settings.mean, settings.std)]
    )

    def transform(image: Image.Image, labels: Tensor) -> tuple[Tensor, Tensor]:
        pixels, classes = steps(functional.to_image(image), tv_tensors.Mask(labels))
        return pixels.as_subclass(Tensor), classes.as_subclass(Tensor)

    return transform


def _augmentation(settings: DataSettings) -> list[nn.Module]:
    fill = {tv_tensors.Image: 0, tv_tensors.Mask: UNLABELLED}
    steps: list[nn.Module] = [
        RandomScale(*settings.scale),
        v2.RandomCrop(settings.image_size, pad_if_needed=True, fill=fill),
        v2.RandomHorizontalFlip(settings.hflip),
    ]
    if settings.color_jitter:
        steps.append(v2.ColorJitter(*[settings.color_jitter] * 3))
    return steps


class RandomScale(nn.Module):
    """Both enlarged by a factor drawn evenly; torchvision's own draw the size that comes out, whatever went in."""

    def __init__(self, least: float, most: float) -> None:
        super().__init__()
        self.least, self.most = least, most

    def forward(self, image: tv_tensors.Image, labels: tv_tensors.Mask) -> tuple[Tensor, Tensor]:
        factor = float(torch.empty(()).uniform_(self.least, self.most))
        size = [max(1, round(length * factor)) for length in image.shape[-2:]]
        return functional.resize(image, size, antialias=True), functional.resize(labels, size)
