"""Images in memory, augmented a batch at once."""

import numpy as np
import pytest
import torch
from accelerate.data_loader import prepare_data_loader
from torchvision.transforms.functional import crop, hflip, pad

from surgery.training import data_loading
from surgery.training.batch_augmentation import BatchedImages, augmented, prepares_batches
from surgery.training.data_loading import calibration_images, make_loader
from surgery.training.images_in_memory import ImagesInMemory
from surgery.training.recipe import DataSettings

COUNT, SIDE = 22, 12


def settings(**more):
    chosen = {"image_size": SIDE, "batch_size": 5, "padding": 2, "mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.1)}
    return DataSettings(**{"name": "cifar10", **chosen, **more})


def images(side=SIDE):
    pixels = np.random.default_rng(0).integers(0, 256, (COUNT, side, side, 3), dtype=np.uint8)
    return ImagesInMemory(pixels, list(range(COUNT)))


def epoch(number=0, first=0, seed=0, part=None, **more):
    """Images by label of an epoch, or of one of two processes' part of it."""
    loader = make_loader(images(), settings(**more), training=True)
    loader.sampler.seed = seed
    loader.sampler.begin(number, first)
    if part is not None:
        loader = prepare_data_loader(loader, num_processes=2, process_index=part, put_on_device=False)
    return {int(label): image for batch, labels in loader for image, label in zip(batch, labels, strict=True)}


def same(some, others):
    return [label for label in some if label in others and torch.equal(some[label], others[label])]


@pytest.mark.parametrize(("size", "padding"), [(SIDE, 2), (8, 1), (14, 3)])
def test_crops_and_mirror_images_are_those_of_one_image_at_a_time(size, padding):
    torch.manual_seed(0)
    batch = torch.randint(0, 256, (64, 3, SIDE, SIDE), dtype=torch.uint8)
    draws, steps = torch.rand(64, 3, dtype=torch.float64), SIDE + 2 * padding - size + 1
    result = augmented(batch, draws, settings(image_size=size, padding=padding, hflip=0.3))
    for image, (top, left, mirror), cropped in zip(batch, draws.tolist(), result, strict=True):
        padded = pad(image, [padding] * 4)
        expected = crop(hflip(padded) if mirror < 0.3 else padded, int(top * steps), int(left * steps), size, size)
        assert torch.equal(cropped, expected)
    assert 5 < (draws[:, 2] < 0.3).sum() < 40


def test_what_is_drawn_depends_on_seed_epoch_and_index_alone():
    whole = epoch(3, seed=7)
    assert len(whole) == 20  # batches of 5: the last two wait for another epoch
    assert len(same(epoch(3, seed=7, batch_size=11), whole)) == 20
    assert len(same(epoch(3, seed=7, workers=2), whole)) == 20
    assert len(same(epoch(3, first=10, seed=7), whole)) == 10
    assert sum(len(same(epoch(3, seed=7, part=part), whole)) for part in (0, 1)) == 20
    for other in (epoch(4, seed=7), epoch(3, seed=8)):
        assert len(same(other, whole)) < 10


def test_every_place_and_both_sides_occur():
    loader = make_loader(images(), settings(padding=1, batch_size=COUNT), training=True)
    dataset = loader.dataset
    draws = torch.cat([dataset._draws(number) for number in range(40)])
    counts = torch.histc((draws[:, :2] * 3).floor() @ torch.tensor([3.0, 1.0], dtype=torch.float64), 9, 0, 8)
    assert counts.min() > len(draws) / 9 / 2
    assert 0.4 < (draws[:, 2] < 0.5).double().mean() < 0.6


def test_plain_images_are_those_that_are_read_one_by_one(monkeypatch):
    batches = [*make_loader(images(), settings(), training=False), *calibration(settings())]
    monkeypatch.setattr(data_loading, "prepares_batches", lambda *_: False)
    one_by_one = [*make_loader(images(), settings(), training=False), *calibration(settings())]
    assert len(batches) == len(one_by_one) == 8
    for (some, labels), (others, truth) in zip(batches, one_by_one, strict=True):
        assert torch.equal(some, others)
        assert torch.equal(labels, truth)


def calibration(chosen):
    return [(batch, torch.zeros(len(batch))) for batch in calibration_images(images(), chosen, 12, seed=0)]


def test_one_image_is_that_of_a_batch():
    dataset = BatchedImages(images(), settings(), training=True)
    batch, labels = dataset.__getitems__([COUNT + 3, COUNT + 5])
    image, label = dataset[COUNT + 5]
    assert torch.equal(image, batch[1])
    assert label == labels[1] == 5


@pytest.mark.parametrize(
    ("more", "side", "training", "expected"),
    [
        ({}, SIDE, True, True),
        ({}, SIDE, False, True),
        ({}, 20, True, True),
        ({"padding": 0}, SIDE, True, False),
        ({"color_jitter": 0.1}, SIDE, True, False),
        ({}, 6, True, False),  # too small, as the crop of one image at a time says
        ({}, 20, False, False),
        ({"crop_pct": 0.9}, SIDE, False, False),
    ],
)
def test_whatever_else_is_asked_for_is_done_image_by_image(more, side, training, expected):
    dataset = make_loader(images(side), settings(**more), training).dataset
    assert isinstance(dataset, BatchedImages) is expected
    assert prepares_batches(images(side), settings(**more), training) is expected
