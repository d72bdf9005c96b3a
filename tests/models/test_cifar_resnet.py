import pytest
import torch

import surgery
from surgery.core.errors import SourceError


def test_is_the_resnet_50_of_cifar():
    network = surgery.create("cifar_resnet", num_classes=100).eval()
    assert surgery.cost(network).params == 23_705_252
    assert network.forward_features(torch.zeros(1, 3, 32, 32)).shape == (1, 2048, 4, 4)
    assert len(surgery.plan(network).sites) == 16


def test_converts_saves_and_loads(tmp_path):
    network = surgery.create("cifar_resnet", layers=[1, 2, 1, 1], channels=[8, 16, 16, 32], stem_stride=2).eval()
    images = torch.randn(4, 3, 32, 32)
    converted = surgery.convert(network, zeta=4, calibrate=images)
    surgery.save(converted, tmp_path / "m.safetensors")
    assert torch.equal(surgery.load(tmp_path / "m.safetensors")(images), converted(images))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"layers": [1]}, "one of each for the four stages"),
        ({"stem_stride": 4}, "stem_stride=4: 1 or 2"),
        ({"layers": [1.5] * 4}, "whole numbers"),
        ({"layers": 5}, "TypeError|not iterable|has no len"),
    ],
)
def test_what_cannot_be_built(kwargs, message):
    with pytest.raises(SourceError, match=message):
        surgery.create("cifar_resnet", **kwargs)
