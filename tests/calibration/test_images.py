import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from surgery.calibration.images import collect


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
