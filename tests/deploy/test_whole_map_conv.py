"""Classifiers written as convolutions become products of matrices."""

import pytest
import torch
from torch import nn

import surgery
from surgery.deploy.whole_map_conv import WholeMapConv2d


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AvgPool2d(4), nn.Conv2d(8, 12, 4), nn.ReLU(), nn.Conv2d(12, 5, 1)
    ).eval()


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("size", [16, 24])
def test_it_computes_the_same_at_any_size(channels_last, size):
    model = network()
    fast = surgery.optimize_for_inference(model, input_size=16, channels_last=channels_last)
    assert isinstance(fast[3], WholeMapConv2d)
    assert not isinstance(fast[0], WholeMapConv2d)
    assert not isinstance(fast[5], WholeMapConv2d)
    x = torch.randn(3, 3, size, size)
    with torch.no_grad():
        torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-5)


def test_the_model_itself_stays():
    model = network()
    surgery.optimize_for_inference(model, input_size=16)
    assert type(model[3]) is nn.Conv2d
