"""Training images that grow from epoch to epoch."""

import torch.nn.functional as F
from torch import Tensor

from surgery.training.recipe_sections import TrainSettings


def sized(images: Tensor, settings: TrainSettings, epoch: int) -> Tensor:
    """Images (N, C, H, W) as large as they are in an epoch, counted from 0; the longer side is what settings mean."""
    side = max(images.shape[2:])
    size = settings.size_in(epoch, side)
    if size == side:
        return images
    sides = [round(length * size / side) for length in images.shape[2:]]
    return F.interpolate(images, size=sides, mode="bilinear", antialias=True)
