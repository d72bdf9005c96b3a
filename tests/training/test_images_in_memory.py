"""Datasets that become one array."""

import numpy as np
import pytest
from PIL import Image
from torch.utils.data import Dataset

from surgery.training import images_in_memory
from surgery.training.images_in_memory import ImagesInMemory, held_in_memory


class Images(Dataset):
    """Noise of some sizes; an image without a size cannot be read."""

    def __init__(self, *sides):
        self.sides = sides

    def __len__(self):
        return len(self.sides)

    def __getitem__(self, index):
        if not self.sides[index]:
            raise ValueError(f"image {index} cannot be read")
        shape = (self.sides[index], 5, 3)
        return Image.fromarray(np.random.default_rng(index).integers(0, 256, shape, dtype=np.uint8)), index % 2


def test_images_and_labels_stay_what_they_are():
    source = Images(4, 4, 4)
    held = held_in_memory(source, "train")
    assert isinstance(held, ImagesInMemory)
    assert (held.pixels.shape, held.labels, len(held.files)) == ((3, 4, 5, 3), [0, 1, 0], 0)
    for index in range(3):
        assert np.array_equal(np.asarray(held[index][0]), np.asarray(source[index][0]))
    assert held.without({0}).labels == [1, 0]


@pytest.mark.parametrize("sides", [(4, 4, 6), (4, 0), ()])
def test_other_sizes_and_damaged_images_leave_the_dataset_as_it_is(sides):
    source = Images(*sides)
    assert held_in_memory(source, "train") is source


def test_the_limit_is_in_bytes(monkeypatch):
    source = Images(4, 4)
    monkeypatch.setattr(images_in_memory, "LARGEST", 2 * 4 * 5 * 3)
    assert isinstance(held_in_memory(source, "train"), ImagesInMemory)
    monkeypatch.setattr(images_in_memory, "LARGEST", 2 * 4 * 5 * 3 - 1)
    assert held_in_memory(source, "train") is source
