"""Batches of a data set: timm's transforms and loaders."""

import copy
from collections.abc import Iterator

import torch
from timm.data import create_loader
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision.transforms import RandomCrop

from surgery.training.recipe import DataSettings


def make_loader(images: Dataset, settings: DataSettings, training: bool) -> DataLoader:
    """timm's loader: augmented and shuffled for training, plain and in order for evaluation."""
    loader = create_loader(
        images,  # type: ignore[arg-type]  # any Dataset with a transform attribute will do
        input_size=(3, settings.image_size, settings.image_size),
        batch_size=settings.batch_size,
        is_training=training,
        scale=settings.scale,
        hflip=settings.hflip,
        color_jitter=settings.color_jitter,
        mean=settings.mean,
        std=settings.std,
        num_workers=settings.workers,
        persistent_workers=settings.workers > 0,
        crop_pct=1.0,
        interpolation="bicubic",
        use_prefetcher=False,
    )
    if training and settings.padding:
        # timm's first transform is its random resized crop, for which CIFAR's recipes have a crop of the padded image
        loader.dataset.transform.transforms[0] = RandomCrop(settings.image_size, padding=settings.padding)
    return loader


def calibration_images(images: Dataset, settings: DataSettings, count: int, seed: int) -> Iterator[Tensor]:
    """Batches of ``count`` training images, chosen by the seed, prepared as for evaluation, without their labels."""
    plain = copy.copy(images)  # timm's loader sets a transform on what it is given
    loader = make_loader(plain, settings, training=False)
    total = len(plain)  # type: ignore[arg-type]
    chosen = torch.randperm(total, generator=torch.Generator().manual_seed(seed))[:count].tolist()
    for batch in DataLoader(Subset(loader.dataset, chosen), settings.batch_size, num_workers=settings.workers):
        yield batch[0]
