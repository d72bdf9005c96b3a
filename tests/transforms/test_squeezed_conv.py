import copy

import torch
from torch import nn

from surgery.methods.pix.layer import PiX
from surgery.transforms.squeezed_conv import SqueezedConv2d


def test_keeps_the_names_of_the_convolution_and_survives_a_copy():
    conv = nn.Conv2d(8, 4, 3, padding=1)
    layer = SqueezedConv2d.wrap(conv, PiX(8, 2), nn.Parameter(conv.weight[:, :2].clone()))
    assert set(layer.state_dict()) == {"weight", "bias", "squeeze.weight", "squeeze.bias"}
    x = torch.randn(2, 8, 5, 5)
    expected = nn.functional.conv2d(layer.squeeze(x), layer.weight, conv.bias, padding=1)
    torch.testing.assert_close(layer(x), expected)
    torch.testing.assert_close(copy.deepcopy(layer)(x), expected)
    assert conv.in_channels == 8
    assert conv.weight.shape[1] == 8
