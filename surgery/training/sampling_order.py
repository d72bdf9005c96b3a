"""The order of training images, and their augmentation, as functions of seed, epoch and index alone."""

import random
from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

EPOCHS = 1 << 20  # more than any training has


class EpochSampler(Sampler[int]):
    """All indices in an order of the epoch's own, from any place in it, as keys that :class:`SeededDataset` reads.

    A key is (seed, epoch, index) in one number, so that a process which loads images need not be told of them.
    """

    def __init__(self, length: int, batch_size: int, seed: int = 0) -> None:
        self.length, self.batch_size, self.seed = length, batch_size, seed
        self.epoch = self.first = 0

    def begin(self, epoch: int, first: int = 0) -> None:
        """Let the next pass be that of ``epoch``, without its first ``first`` images.

        It is not called set_epoch, because Accelerate would call that with a count of its own.
        """
        self.epoch, self.first = epoch, first

    def __len__(self) -> int:
        return self.length - self.first

    def batch(self, epoch: int, number: int) -> list[int]:
        """Indices of the images in one batch of an epoch."""
        return self._order(epoch)[number * self.batch_size : (number + 1) * self.batch_size].tolist()

    def _order(self, epoch: int) -> np.ndarray:
        return np.random.default_rng((self.seed, epoch)).permutation(self.length)

    def __iter__(self) -> Iterator[int]:
        order = self._order(self.epoch)
        pass_number = self.seed * EPOCHS + self.epoch
        return (pass_number * self.length + int(index) for index in order[self.first :])


class SeededDataset(Dataset):
    """A dataset whose items, read by the keys of :class:`EpochSampler`, draw from (seed, epoch, index) alone.

    Reading an item seeds Python's, NumPy's and torch's generators of the process that reads it.
    """

    def __init__(self, images: Dataset, length: int) -> None:
        self.images, self.length = images, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, key: int) -> object:
        pass_number, index = divmod(key, self.length)
        # saving and restoring the generators would take longer than most augmentations; a step seeds its own anyway
        seed = int(np.random.SeedSequence((pass_number, index)).generate_state(1)[0])
        random.seed(seed)
        np.random.seed(seed)
        torch.default_generator.manual_seed(seed)
        return self.images[index]
