"""Calibration images from a folder, prepared as the model's own configuration says."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image, UnidentifiedImageError
from timm.data import create_transform, resolve_data_config
from torch import Tensor, nn

from surgery.calibration.images import BATCH

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".tif", ".tiff"})


def folder_batches(
    folder: str | Path, model: nn.Module, count: int = 1024, input_size: Sequence[int] | None = None
) -> Iterator[Tensor]:
    """Batches (N, C, H, W) of ``count`` images found anywhere below a folder, spread evenly over their sorted names.

    Args:
        model: of timm: its ``pretrained_cfg`` says size, crop, mean and standard deviation; else timm's defaults.
        input_size: (C, H, W) in place of the configured one.

    Raises:
        FileNotFoundError: no such folder, or no image below it.
        ValueError: ``count`` below 1, or a file that is no image.
    """
    if count < 1:
        raise ValueError(f"{count} calibration images: at least 1 is needed")
    names = sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in SUFFIXES)
    if not names:
        raise FileNotFoundError(f"there is no image ({', '.join(sorted(SUFFIXES))}) below {str(folder)!r}")
    chosen = [names[i * len(names) // min(count, len(names))] for i in range(min(count, len(names)))]
    config = resolve_data_config({"input_size": tuple(input_size)} if input_size else {}, model=model)
    return _batches(chosen, cast(Any, create_transform(**config, is_training=False)), config["input_size"][0])


def _batches(names: list[Path], transform: Any, channels: int) -> Iterator[Tensor]:
    for begin in range(0, len(names), BATCH):
        yield torch.stack([transform(_opened(name, channels)) for name in names[begin : begin + BATCH]])


def _opened(name: Path, channels: int) -> Image.Image:
    try:
        with Image.open(name) as image:
            return image.convert("L" if channels == 1 else "RGB")
    except UnidentifiedImageError:
        raise ValueError(f"{str(name)!r} is no image that can be read") from None
