"""Batches of images in memory, cropped, mirrored and normalised as tensors, all images of a batch at once.

For small images that takes a hundredth of what image by image takes: there Python and Pillow cost more than the pixels.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.data import Dataset

from surgery.training.images_in_memory import ImagesInMemory
from surgery.training.recipe import DataSettings

Batch = tuple[Tensor, Tensor]


def prepares_batches(images: ImagesInMemory, settings: DataSettings, training: bool) -> bool:
    """Whether :class:`BatchedImages` prepares images just as ``settings`` ask.

    For training they must ask for crops of the padded image and no other colours, for testing for the whole image.
    """
    size, sides = settings.image_size, images.pixels.shape[1:3]
    if not training:
        return settings.crop_pct == 1 and sides == (size, size)
    return settings.padding > 0 and not settings.color_jitter and min(sides) + 2 * settings.padding >= size


class BatchedImages(Dataset):
    """Images in memory, read by a loader batch by batch: float32 (N, 3, H, W), normalised, and int64 labels.

    For training its keys are those of :class:`surgery.training.sampling_order.EpochSampler`, and what an image's
    augmentation draws depends on seed, epoch and index alone: on no batch, no process and no generator. For testing its
    keys are indices.
    """

    def __init__(self, images: ImagesInMemory, settings: DataSettings, training: bool) -> None:
        self.pixels, self.labels = torch.from_numpy(images.pixels), torch.tensor(images.labels)
        self.settings, self.training = settings, training
        self.mean, self.std = (torch.tensor(statistic).view(-1, 1, 1) for statistic in (settings.mean, settings.std))
        self._drawn: tuple[int, Tensor] = (-1, torch.empty(0))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, key: int) -> tuple[Tensor, Tensor]:
        images, labels = self.__getitems__([key])
        return images[0], labels[0]

    def __getitems__(self, keys: Sequence[int]) -> Batch:
        """The batch of these keys, of one epoch all; the ``collate_fn`` of the loader is to be :func:`as_it_is`."""
        indices = torch.tensor([key % len(self) for key in keys])
        # index_select takes a twentieth of what [] does, and flipping a third where rows lie in one piece
        images = self.pixels.index_select(0, indices).permute(0, 3, 1, 2).contiguous()
        if self.training:
            (pass_number,) = {key // len(self) for key in keys}
            images = augmented(images, self._draws(pass_number)[indices], self.settings)
        return images.float().div_(255).sub_(self.mean).div_(self.std), self.labels[indices]

    def _draws(self, pass_number: int) -> Tensor:
        """Three numbers from 0 to below 1 for each image, float64 (N, 3), of a seed and epoch (``pass_number``)."""
        if self._drawn[0] != pass_number:
            generator = np.random.Generator(np.random.Philox(np.random.SeedSequence(pass_number)))
            self._drawn = pass_number, torch.from_numpy(generator.random((len(self), 3)))
        return self._drawn[1]


def as_it_is(batch: Batch) -> Batch:
    """A batch that is whole already."""
    return batch


def augmented(images: Tensor, draws: Tensor, settings: DataSettings) -> Tensor:
    """Images, (N, 3, H, W), mirrored, and cropped to ``image_size`` with ``padding`` black pixels around them.

    Args:
        draws: (N, 3), from 0 to below 1: for the crop's place from above and from the left, and for the mirror.
    """
    size, border = settings.image_size, settings.padding
    padded = pad(images, (border, border, border, border))
    windows = torch.cat([padded, padded.flip(3)]).unfold(2, size, 1).unfold(3, size, 1)
    rows, columns = ((draws[:, axis] * windows.shape[2 + axis]).long() for axis in (0, 1))
    mirrored = draws[:, 2] < settings.hflip
    return windows[torch.arange(len(images)) + len(images) * mirrored, :, rows, columns]
