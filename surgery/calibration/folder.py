"""Calibration images from a folder, prepared as the model's own configuration says."""

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from surgery.calibration.images import BATCH
from surgery.graph.input_size import InputSize
from surgery.vision.image_files import images_below, open_image
from surgery.vision.preprocessing import preprocessing_of


def folder_batches(
    folder: str | Path, model: nn.Module, count: int = 1024, input_size: InputSize | None = None
) -> Iterator[Tensor]:
    """Batches (N, C, H, W) of ``count`` images found anywhere below a folder, spread evenly over their sorted names.

    Args:
        model: what it was saved with, or its ``pretrained_cfg``, says size, crop, mean and deviation; else timm's
            defaults.
        input_size: (C, H, W), (H, W) or one side in place of the configured one.

    Raises:
        FileNotFoundError: no such folder, or no image below it.
        ValueError: ``count`` below 1, or a file that is no image.
    """
    if count < 1:
        raise ValueError(f"{count} calibration images: at least 1 is needed")
    names = images_below(folder)
    chosen = [names[i * len(names) // min(count, len(names))] for i in range(min(count, len(names)))]
    preprocessing = preprocessing_of(model, input_size)
    return _batches(chosen, preprocessing.transform(), preprocessing.size[0])


def _batches(names: list[Path], transform: Callable[[Image.Image], Tensor], channels: int) -> Iterator[Tensor]:
    for begin in range(0, len(names), BATCH):
        yield torch.stack([transform(open_image(name, channels)) for name in names[begin : begin + BATCH]])
