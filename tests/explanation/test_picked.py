"""Positions of picked channels inside their subsets."""

import pytest
import torch

from surgery.explanation.picked import most_picked, subset_positions
from surgery.transforms.subsets import subset_members
from tests.explanation.networks import converted, original


@pytest.mark.parametrize("grouping", ["contiguous", "strided"])
def test_positions_are_found_for_both_groupings_and_uneven_subsets(grouping):
    members = subset_members(10, 4, grouping)
    picked, expected = torch.full((4, 2, 2), -1), torch.full((4, 2, 2), -1)
    for output, subset in enumerate(members):
        for position, number in enumerate(subset):
            picked[output].view(-1)[position], expected[output].view(-1)[position] = number, position
    assert torch.equal(subset_positions(picked, 10), expected)


def test_the_image_on_which_most_is_picked_is_taken():
    model, images = converted(original(), "pix"), torch.randn(4, 3, 32, 32)
    layers = {name: m for name, m in model.named_modules() if type(m).__name__ == "PiX"}
    picked = most_picked(model, images)
    assert set(picked.positions) == set(layers)  # one of each stage, for a stage has one block
    for name, positions in picked.positions.items():
        layer = layers[name]
        assert positions.shape[0] == layer.out_channels
        assert int(positions.min()) >= -1
        assert int(positions.max()) < picked.sizes[name] == -(-layer.in_channels // layer.out_channels)


def test_nothing_is_picked_where_all_mix():
    model = converted(original(), "pix")
    for layer in model.modules():
        if hasattr(layer, "tau"):
            layer.tau = 0.0
    assert most_picked(model, torch.randn(2, 3, 32, 32)) is None
    assert most_picked(original(), torch.randn(2, 3, 32, 32)) is None
