"""What a PiX layer says it decides, against a reference written with loops."""

import pytest
import torch

from surgery.methods.pix.layer import PiX
from surgery.transforms.subsets import subset_members


def layer_of(**options):
    torch.manual_seed(0)
    layer = PiX(10, 4, **options).double().eval()
    torch.nn.init.normal_(layer.weight, std=2.0)
    return layer


def images():
    return torch.randn(3, 10, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


OPTIONS = [
    {},
    {"grouping": "strided", "stride": (2, 2)},
    {"activation": "tanh", "tau": 0.3},
    {"operator": "max"},
    {"operator": "min"},
    {"operator": "avg"},
    {"fusion": "weighted"},
    {"predictor_norm": True, "input_norm": True},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_gates_and_picked_channels_are_what_the_layer_does(options):
    layer, x = layer_of(**options), images()
    gates, picked = layer.gates(x), layer.picked_channels(x)
    always = {"max+avg": None, "max": True, "min": True, "avg": False}[layer.operator]
    output, strided = layer(x), x[:, :, :: layer.stride[0], :: layer.stride[1]]
    if layer.input_norm is not None:
        strided = layer.input_norm(x)
    for image in range(len(x)):
        for channel, members in enumerate(subset_members(10, 4, layer.grouping)):
            p = gates.values[image, channel].item()
            picks = gates.states["picks"][image, channel].item()
            assert picks != gates.states["mixes"][image, channel].item()
            assert picks == (False if layer.fusion == "weighted" else always if always is not None else p <= layer.tau)
            for row in range(output.shape[2]):
                for column in range(output.shape[3]):
                    number = picked[image, channel, row, column].item()
                    assert (number == -1) == (not picks)
                    if picks:
                        assert number in members
                        value = p * strided[image, number, row, column]
                        torch.testing.assert_close(output[image, channel, row, column], value)


def test_a_threshold_in_the_middle_has_both_states():
    states = layer_of().gates(images()).states
    assert states["picks"].any()
    assert states["mixes"].any()
