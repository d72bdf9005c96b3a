"""Images of one size, decoded once and held as one array."""

from collections.abc import Callable, Container, Sequence

import numpy as np
from PIL import Image
from torch.utils.data import Dataset
from tqdm import tqdm

LARGEST = 1 << 30  # bytes of pixels that a part of a dataset is held in memory for


class ImagesInMemory(Dataset):
    """Images in memory, uint8 (N, H, W, 3), with labels; ``transform`` is set by timm's loader."""

    def __init__(self, pixels: np.ndarray, labels: Sequence[int]) -> None:
        self.pixels, self.labels = pixels, list(labels)
        self.transform: Callable[[Image.Image], object] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def files(self) -> tuple[()]:
        """None: all is in memory."""
        return ()

    def without(self, left_out: Container[int]) -> "ImagesInMemory":
        """The same images without those of these indices."""
        remaining = [index for index in range(len(self)) if index not in left_out]
        return ImagesInMemory(self.pixels[remaining], [self.labels[index] for index in remaining])

    def __getitem__(self, index: int) -> tuple[object, int]:
        image = Image.fromarray(self.pixels[index])
        return (image if self.transform is None else self.transform(image)), self.labels[index]


def held_in_memory(images: Dataset, part: str) -> Dataset:
    """A dataset of RGB images and labels as :class:`ImagesInMemory`.

    It stays as it is where its images differ in size, take more than LARGEST bytes, or one of them cannot be read: then
    whoever reads that image says so.
    """
    total: int = len(images)  # type: ignore[arg-type]
    pixels, labels = None, []
    try:
        for index in tqdm(range(total), f"reading {part} images", leave=False, unit="image", mininterval=0.5):
            image, label = images[index]
            array = np.asarray(image)
            if pixels is None and total * array.nbytes <= LARGEST:
                pixels = np.empty((total, *array.shape), np.uint8)
            if pixels is None or array.shape != pixels.shape[1:]:
                return images
            pixels[index] = array
            labels.append(label)
    except ValueError:
        return images
    return images if pixels is None else ImagesInMemory(pixels, labels)
