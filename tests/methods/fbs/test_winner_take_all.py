"""Which channels are kept: exactly ⌈d·C⌉, of equal ones the first, against a reference written with loops."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from surgery.methods.fbs.winner_take_all import active_indices, kept_count, mean_magnitude, winner_take_all, winners


def winners_by_sorting(row, count):
    """Numbers of the kept channels, by Python's stable sort."""
    return sorted(sorted(range(len(row)), key=lambda channel: -row[channel])[:count])


@given(st.integers(1, 100), st.integers(1, 2048))
def test_the_count_is_the_share_rounded_up(percent, channels):
    assert kept_count(percent / 100, channels) == math.ceil(Fraction(percent, 100) * channels)


@given(st.lists(st.lists(st.integers(0, 4), min_size=6, max_size=6), min_size=1, max_size=4), st.integers(1, 6))
def test_winners_are_the_largest_and_of_equal_ones_the_first(rows, count):
    saliency = torch.tensor(rows, dtype=torch.float32)
    mask = winner_take_all(saliency, count)
    assert mask.sum(1).tolist() == [count] * len(rows)
    expected = [winners_by_sorting(row, count) for row in rows]
    assert active_indices(mask, count).tolist() == expected == winners(saliency, count).tolist()
    assert [[c for c, kept in enumerate(row) if kept] for row in mask.tolist()] == expected


def test_choosing_has_no_gradient():
    saliency = torch.rand(2, 5, requires_grad=True)
    assert not winner_take_all(saliency, 2).requires_grad


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_magnitudes_are_means_of_absolute_values(dtype, layout):
    x = torch.randn(3, 4, 5, 7).to(dtype).to(memory_format=layout)
    expected = x.double().abs().mean((2, 3))
    torch.testing.assert_close(mean_magnitude(x).double(), expected, rtol=1e-5, atol=1e-6)


def test_half_precision_does_not_overflow():
    x = torch.full((1, 2, 64, 64), 60000.0, dtype=torch.float16)
    assert mean_magnitude(x).tolist() == [[60000.0, 60000.0]]
