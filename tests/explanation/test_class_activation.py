"""Which module Grad-CAM looks at."""

import pytest
import torch
from torch import nn

from surgery.explanation.class_activation import class_activation, map_layer
from tests.explanation.networks import original


def test_the_map_that_is_pooled_is_taken():
    assert map_layer(original(), (3, 32, 32)) == "layer4.0.act3"


def test_of_a_map_that_no_module_gives_the_last_alike_is_taken():
    class Called(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.unused, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1), nn.Linear(4, 2)

        def forward(self, x):
            return self.head(torch.relu(self.conv(x)).mean((2, 3)))

    assert map_layer(Called(), (3, 8, 8)) == "conv"


def test_another_module_may_be_named():
    assert map_layer(original(), (3, 32, 32), "layer1") == "layer1"


@pytest.mark.parametrize("name", ["layer", "fc", ""])
def test_a_module_without_a_map_is_refused(name):
    with pytest.raises(ValueError, match=f"--layer '{name}': a module .* one map .* is needed, such as "):
        map_layer(original(), (3, 32, 32), name)


def test_activation_is_the_positive_part_of_the_map_weighed_by_mean_gradients():
    model, image = original(), torch.randn(1, 3, 32, 32)
    maps, probabilities = class_activation(model, image, [1], "layer4")
    seen = []
    handle = model.layer4.register_forward_hook(lambda _, args, output: seen.append(output))
    logits = model(image)
    handle.remove()
    (gradient,) = torch.autograd.grad(logits[0, 1], seen[0])
    expected = (gradient.mean((2, 3), keepdim=True) * seen[0]).sum(1).relu()
    assert probabilities == [pytest.approx(logits.softmax(1)[0, 1].item())]
    assert maps.shape == (1, 32, 32)
    corners = torch.from_numpy(maps[0])[::31, ::31].flatten()
    assert corners.argmax() == expected[0][:: expected.shape[1] - 1, :: expected.shape[2] - 1].flatten().argmax()
    assert maps.min() >= 0
    assert maps.max() <= 1
