import copy

import pytest
import torch
from torch import nn

from surgery.core.surgery_layer import OpCost, SurgeryLayer, replace_layers


class Doubled(SurgeryLayer):
    """Twice what an inner module gives."""

    def __init__(self, inner=None):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return 2 * (x if self.inner is None else self.inner(x))

    def cost(self, in_shape, out_shape):
        return OpCost()


class Undeclared(SurgeryLayer):
    def forward(self, x):
        return x


class SeenThrough(Undeclared):
    opaque = False


class Plain(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return x + x if self.inner is None else self.inner(x) + self.inner(x)


def plain(layer):
    return Plain(layer.inner) if isinstance(layer, Doubled) else layer


def test_an_opaque_layer_says_what_it_costs():
    with pytest.raises(TypeError, match=r"Undeclared is opaque, so it needs a method cost\(\)"):
        Undeclared()
    with pytest.raises(NotImplementedError):
        SeenThrough().cost((1, 2), (1, 2))


def test_what_a_layer_does_not_say_changes_nothing():
    layer = Doubled()
    assert layer.lowered() is layer
    assert layer.folded() is None
    assert layer.auxiliary_loss() is None
    assert layer.observe(torch.ones(1)) is None


def test_layers_are_replaced_wherever_they_are_shared_ones_once():
    shared = Doubled()
    model = nn.Sequential(shared, Doubled(nn.Sequential(Doubled(), nn.Conv2d(1, 1, 1))), nn.ModuleDict({"a": shared}))
    model[2].forward = lambda x, held=model[2]: held["a"](x)
    x = torch.randn(1, 1, 2, 2)
    expected, inner = model[1](model[0](x)), model[1].inner[1]
    assert replace_layers(model, plain) is model
    assert not any(isinstance(module, Doubled) for module in model.modules())
    assert model[0] is model[2]["a"]
    assert model[1].inner[1] is inner
    torch.testing.assert_close(model[1](model[0](x)), expected)


def test_a_model_that_is_a_layer_becomes_its_replacement():
    layer = Doubled(Doubled())
    before = copy.deepcopy(layer)
    replaced = replace_layers(layer, plain)
    x = torch.randn(3)
    assert type(replaced) is Plain
    torch.testing.assert_close(replaced(x), before(x))
