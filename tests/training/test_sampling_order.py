import random

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from surgery.training.sampling_order import EpochSampler, SeededDataset


class Draws(Dataset):
    """Its items are their index and what the three generators draw."""

    def __getitem__(self, index):
        return index, torch.tensor([random.random(), np.random.rand(), torch.rand(()).item()], dtype=torch.float64)


def passes(epoch, first=0, seed=0, workers=0):
    order = EpochSampler(10, 3, seed)
    order.begin(epoch, first)
    loader = DataLoader(SeededDataset(Draws(), 10), batch_size=3, sampler=order, num_workers=workers)
    parts = list(loader)
    assert len(parts) == len(loader)
    return torch.cat([index for index, _ in parts]), torch.cat([drawn for _, drawn in parts])


def test_an_epoch_is_a_permutation_of_its_own():
    orders = [passes(epoch, seed=seed)[0] for epoch, seed in ((0, 0), (1, 0), (0, 1))]
    assert all(sorted(order.tolist()) == list(range(10)) for order in orders)
    assert len({tuple(order.tolist()) for order in orders}) == 3


def test_what_is_drawn_depends_on_seed_epoch_and_index_alone():
    index, drawn = passes(2)
    for again in (passes(2), passes(2, workers=2)):
        assert torch.equal(index, again[0])
        assert torch.equal(drawn, again[1])
    late = passes(2, first=6)
    assert torch.equal(late[0], index[6:])
    assert torch.equal(late[1], drawn[6:])
    other = passes(3)
    assert not torch.equal(drawn[index.argsort()], other[1][other[0].argsort()])
