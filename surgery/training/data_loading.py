"""Batches of a dataset, transformed."""

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import torch
from timm.data import create_transform
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset, default_collate
from torchvision.transforms import Compose, PILToTensor, RandomCrop

from surgery.training.batch_augmentation import BatchedImages, as_it_is, prepares_batches
from surgery.training.images_in_memory import ImagesInMemory
from surgery.training.recipe import DataSettings
from surgery.training.saliency_transform import saliency_transform, with_masks_apart
from surgery.training.sampling_order import EpochSampler, SeededDataset
from surgery.training.segmentation_transform import segmentation_transform
from surgery.training.stopping import leave_signals_to_parent


def make_loader(images: Dataset, settings: DataSettings, training: bool, batch_size: int | None = None) -> DataLoader:
    """Batches: for training augmented, in an EpochSampler's order; else plain.

    Images in memory are prepared batch by batch where that can be. Test images with label maps differ in size, so they
    come one by one.
    """
    size = 1 if settings.segments and not training else batch_size or settings.batch_size
    prepared, collate = _prepared(images, settings, training)
    common: dict[str, Any] = {
        "batch_size": size,
        "num_workers": settings.workers,
        "persistent_workers": settings.workers > 0,
        "pin_memory": torch.cuda.is_available(),
        "worker_init_fn": leave_signals_to_parent,
        "collate_fn": collate,
    }
    if not training:
        return DataLoader(prepared, **common)
    total: int = len(prepared)  # type: ignore[arg-type]
    return DataLoader(prepared, sampler=EpochSampler(total, size), drop_last=total >= size, **common)


def _prepared(images: Dataset, settings: DataSettings, training: bool) -> tuple[Dataset, Callable[[Any], Any] | None]:
    """What a loader reads, by the keys of an EpochSampler for training, and its ``collate_fn``."""
    if isinstance(images, ImagesInMemory) and prepares_batches(images, settings, training):
        return BatchedImages(images, settings, training), as_it_is
    prepared = cast(Any, copy.copy(images))
    prepared.transform = _transform(settings, training)
    if not training:
        return prepared, with_masks_apart if settings.saliency else None
    collate = None if settings.has_maps else NormalisingCollate(settings.mean, settings.std)
    return SeededDataset(prepared, len(prepared)), collate


def _transform(settings: DataSettings, training: bool) -> Any:
    if settings.segments:
        return segmentation_transform(settings, training)
    if settings.saliency:
        return saliency_transform(settings, training)
    return _image_transform(settings, training)


def _image_transform(settings: DataSettings, training: bool) -> Any:
    transform = create_transform(
        input_size=(3, settings.image_size, settings.image_size),
        is_training=training,
        scale=settings.scale,
        hflip=settings.hflip,
        color_jitter=cast(Any, settings.color_jitter or None),  # 0 would cost as much as any
        mean=settings.mean,
        std=settings.std,
        crop_pct=settings.crop_pct,
        interpolation=settings.interpolation,
    )
    if not training:
        return transform
    if settings.padding:
        # timm's first transform is its random resized crop, for which CIFAR's recipes have a crop of the padded image
        transform.transforms[0] = RandomCrop(settings.image_size, padding=settings.padding)
    return Compose([*transform.transforms[:-2], PILToTensor()])  # the last two make numbers of it and normalise


class NormalisingCollate:
    """Training images, uint8, as one batch of float32, and their labels.

    As timm's loaders do, a batch is normalised at once: for small images that takes a fraction of the time.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.mean, self.std = (torch.tensor(statistic).view(-1, 1, 1) for statistic in (mean, std))

    def __call__(self, items: Sequence[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
        images, labels = default_collate(list(items))
        return images.float().div_(255).sub_(self.mean).div_(self.std), labels


def calibration_images(images: Dataset, settings: DataSettings, count: int, seed: int) -> Iterator[Tensor]:
    """Batches of ``count`` training images, chosen by the seed, without their labels.

    They are prepared as for evaluation; images with label maps or masks as for training, so that all have one size, the
    one that layers which pool the whole map are to be calibrated to.
    """
    for batch in _chosen(images, settings, seed, slice(count)):
        yield batch[0]


def labelled_images(images: Dataset, settings: DataSettings, count: int, seed: int) -> DataLoader:
    """Batches of ``count`` training images and their labels, prepared alike: those that calibration would take last."""
    return _chosen(images, settings, seed, slice(-count, None))


def _chosen(images: Dataset, settings: DataSettings, seed: int, part: slice) -> DataLoader:
    loader = make_loader(images, settings, training=settings.has_maps)
    if settings.has_maps:
        cast(EpochSampler, loader.sampler).seed = seed
        order = list(loader.sampler)
    else:
        total = len(loader.dataset)  # type: ignore[arg-type]
        order = torch.randperm(total, generator=torch.Generator().manual_seed(seed)).tolist()
    return DataLoader(
        Subset(loader.dataset, order[part]),
        settings.batch_size,
        num_workers=settings.workers,
        worker_init_fn=leave_signals_to_parent,
        collate_fn=loader.collate_fn,
    )
