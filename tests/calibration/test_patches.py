import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers import Conv2dSame
from torch import nn

from surgery.calibration.patches import at, matrices, patches, sampled


def agrees(layer, x, count):
    """Rows times the weight are the layer's output at the same places."""
    y = layer(x)
    places = sampled(y, count, torch.Generator().manual_seed(0))
    rows = patches(layer, x, places).double()
    product = torch.einsum("rgd,god->rgo", rows, matrices(layer)).flatten(1)
    constant = y.new_zeros(1) if layer.bias is None else layer.bias
    if isinstance(layer, nn.BatchNorm2d):
        constant = layer.bias - layer.running_mean * matrices(layer).flatten()
    torch.testing.assert_close(product + constant, at(y, places), rtol=1e-6, atol=1e-8)


@settings(deadline=None, max_examples=60)
@given(
    kernel=st.sampled_from([1, 2, 3, (1, 5)]),
    stride=st.integers(1, 3),
    dilation=st.integers(1, 2),
    padding=st.sampled_from([0, 1, "zeros", "reflect", "circular"]),
    groups=st.sampled_from([1, 2, 6]),
    same=st.booleans(),
    count=st.sampled_from([3, 1000]),
    bias=st.booleans(),
)
def test_convolutions(kernel, stride, dilation, padding, groups, same, count, bias):
    arguments = {"stride": stride, "dilation": dilation, "groups": groups, "bias": bias, "dtype": torch.float64}
    if same:
        layer = Conv2dSame(6, 12, kernel, **arguments)
    elif isinstance(padding, str):
        layer = nn.Conv2d(6, 12, kernel, padding=2, padding_mode=padding, **arguments)
    else:
        layer = nn.Conv2d(6, 12, kernel, padding=padding, **arguments)
    x = torch.randn(2, 6, 11, 9, dtype=torch.float64)
    agrees(layer, x.contiguous(memory_format=torch.channels_last), count)


def test_padding_by_name():
    agrees(nn.Conv2d(4, 2, 3, padding="same", dtype=torch.float64), torch.randn(2, 4, 5, 5, dtype=torch.float64), 9)


def test_linear_and_norm():
    agrees(nn.Linear(5, 3, dtype=torch.float64), torch.randn(7, 5, dtype=torch.float64), 100)
    norm = nn.BatchNorm2d(4, dtype=torch.float64).eval()
    nn.init.normal_(norm.weight)
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    agrees(norm, torch.randn(2, 4, 3, 3, dtype=torch.float64), 100)


@pytest.mark.parametrize(("count", "rows"), [(2, 6), (100, 36)])
def test_positions_are_different_ones_of_every_image(count, rows):
    image, i, j = sampled(torch.zeros(3, 1, 3, 4), count, torch.Generator().manual_seed(1))
    assert len(set(zip(image.tolist(), i.tolist(), j.tolist(), strict=True))) == rows == len(image)
    assert image.bincount().tolist() == [rows // 3] * 3


@pytest.mark.parametrize("shape", [(3, 7, 5), (3, 2, 4, 5)])
@pytest.mark.parametrize("count", [2, 100])
def test_linear_layers_on_tokens_and_on_maps_with_channels_last(shape, count):
    layer, x = nn.Linear(5, 4, dtype=torch.float64), torch.randn(shape, dtype=torch.float64)
    y = layer(x)
    places = sampled(y, count, torch.Generator().manual_seed(0), last=True)
    assert len(places[0]) == 3 * min(count, y[0, ..., 0].numel())
    assert len(set(zip(*(index.tolist() for index in places), strict=True))) == len(places[0])
    product = torch.einsum("rgd,god->rgo", patches(layer, x, places), matrices(layer)).flatten(1)
    torch.testing.assert_close(product + layer.bias, at(y, places))
