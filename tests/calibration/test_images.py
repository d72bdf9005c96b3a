import copy
import itertools
import warnings

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import surgery
from surgery.calibration.images import collect
from tests.small_models import Net


def test_neither_order_nor_batches_matter():
    images = torch.randn(70, 3, 4, 4)
    expected = collect(images)
    assert [len(batch) for batch in expected] == [32, 32, 6]
    shuffled = images[torch.randperm(70)]
    loader = DataLoader(TensorDataset(shuffled, torch.arange(70)), batch_size=9)
    for given in (shuffled, [shuffled[:1], shuffled[1:]], loader, ([part] for part in shuffled.split(33))):
        assert all(torch.equal(a, b) for a, b in zip(expected, collect(given), strict=True))
    assert sum(map(len, collect(loader, limit=10))) == 10


@pytest.mark.parametrize(
    ("batches", "error", "message"),
    [
        ([], ValueError, "no calibration images"),
        (torch.empty(0, 3, 4, 4), ValueError, "no calibration images"),
        (["a"], TypeError, "batch 0 .* floats"),
        (torch.zeros(2, 3, 4), TypeError, r"shape \(2, 3, 4\)"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), TypeError, "uint8"),
        ([torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 5, 4)], ValueError, "batch 1 .* one size"),
        ([torch.zeros(1, 3, 4, 4), torch.full((1, 3, 4, 4), torch.nan)], ValueError, "batch 1 .* NaN"),
    ],
)
def test_what_is_no_batch_of_images(batches, error, message):
    with pytest.raises(error, match=message):
        collect(batches)


@pytest.mark.parametrize(
    ("batches", "advice"),
    [
        (torch.zeros(3, 4, 4), r"image\[None\] makes a batch, of several torch.stack"),
        ([{"pixels": torch.zeros(2, 3, 4, 4)}], r"a dict with 'pixels': .*batch\['pixels'\] for batch in loader"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), "scale and normalise"),
        ([np.zeros((2, 3, 4, 4))], "torch.from_numpy"),
        ("photos", "calibration images are 'photos'"),
        (5, "calibration images are 5"),
    ],
)
def test_what_would_make_images_of_it(batches, advice):
    with pytest.raises(TypeError, match=advice):
        collect(batches)


@pytest.mark.parametrize("limit", [0, -1, 2.5, True])
def test_limits_that_cannot_be(limit):
    with pytest.raises(ValueError, match=f"images={limit}: a whole number"):
        collect(torch.zeros(2, 3, 4, 4), limit)


def test_images_of_one_colour_are_warned_of():
    with pytest.warns(UserWarning, match="of one colour"):
        collect(torch.zeros(2, 3, 4, 4))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        collect(torch.cat([torch.zeros(1, 3, 4, 4), torch.randn(1, 3, 4, 4)]))


@pytest.mark.parametrize("dtypes", list(itertools.product([torch.float32, torch.float64], repeat=2)))
def test_images_of_any_float_dtype_calibrate(dtypes):
    model = Net("module", "module").to(dtypes[0])
    images = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(0)).to(dtypes[1])
    report = surgery.calibrate(surgery.convert(model), model, images, progress=False)
    assert report.rows


def test_networks_of_two_dtypes_are_refused():
    model = Net("module", "module")
    with pytest.raises(ValueError, match="model computes in torch.float32, teacher in torch.float64"):
        surgery.calibrate(surgery.convert(model), copy.deepcopy(model).double(), torch.randn(4, 3, 16, 16))
