"""Data sets by name, through timm's transforms and loaders."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from timm.data import create_loader
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from surgery.errors import check_choice
from surgery.training.recipe import DataSettings, RecipeError

MEAN = STD = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class DataSet:
    """Training and test images (PIL, label) and the number of classes."""

    train: Dataset
    test: Dataset
    classes: int


class Images(Dataset):
    """PIL images in memory with labels; ``transform`` is set by timm's loader."""

    def __init__(self, images: list[Image.Image], labels: list[int]) -> None:
        self.images, self.labels = images, labels
        self.transform: Callable[[Image.Image], object] | None = None

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[object, int]:
        image = self.images[index]
        return (image if self.transform is None else self.transform(image)), self.labels[index]


def digits(settings: DataSettings) -> DataSet:
    """scikit-learn's 1,797 handwritten digits (8×8, 10 classes), enlarged; one fifth is the test set."""
    bunch = load_digits()
    size = (settings.image_size, settings.image_size)
    pixels = (bunch.images / 16 * 255).round().astype(np.uint8)
    images = [Image.fromarray(each).convert("RGB").resize(size, Image.Resampling.BICUBIC) for each in pixels]
    labels = [int(label) for label in bunch.target]
    parts = train_test_split(images, labels, test_size=0.2, stratify=labels, random_state=0)
    return DataSet(Images(parts[0], parts[2]), Images(parts[1], parts[3]), 10)


DATA_SETS: dict[str, Callable[[DataSettings], DataSet]] = {"digits": digits}


def open_data(settings: DataSettings) -> DataSet:
    """The recipe's data set; raises RecipeError that lists what there is."""
    try:
        check_choice("data.name", settings.name, DATA_SETS)
    except ValueError as error:
        raise RecipeError(str(error)) from None
    return DATA_SETS[settings.name](settings)


def make_loader(images: Dataset, settings: DataSettings, training: bool) -> DataLoader:
    """timm's loader: augmented and shuffled for training, plain and in order for evaluation."""
    return create_loader(
        images,  # type: ignore[arg-type]  # any Dataset with a transform attribute will do
        input_size=(3, settings.image_size, settings.image_size),
        batch_size=settings.batch_size,
        is_training=training,
        scale=settings.scale,
        hflip=settings.hflip,
        color_jitter=settings.color_jitter,
        mean=MEAN,
        std=STD,
        num_workers=settings.workers,
        persistent_workers=settings.workers > 0,
        crop_pct=1.0,
        interpolation="bicubic",
        use_prefetcher=False,
    )


def calibration_images(images: Dataset, settings: DataSettings, count: int, seed: int) -> Iterator[Tensor]:
    """Batches of ``count`` training images, chosen by the seed, prepared as for evaluation, without their labels."""
    plain = copy.copy(images)  # timm's loader sets a transform on what it is given
    loader = make_loader(plain, settings, training=False)
    total = len(plain)  # type: ignore[arg-type]
    chosen = torch.randperm(total, generator=torch.Generator().manual_seed(seed))[:count].tolist()
    for batch in DataLoader(Subset(loader.dataset, chosen), settings.batch_size, num_workers=settings.workers):
        yield batch[0]
