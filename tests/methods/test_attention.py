"""Squeeze and excitation, and channel and spatial attention: where they go, and that they begin as the identity."""

import pytest
import timm
import torch
from timm.layers import SEModule
from torch import nn
from torch.nn import functional as F

import surgery
from surgery.transforms.history import history
from surgery.transforms.insert_behind import WithLayerBehind

METHODS = ["se", "cbam"]


def trained(model):
    """Norms as if they were trained: timm's residual branches begin at zero."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for norm in model.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.weight.copy_(0.5 + torch.rand(norm.weight.shape, generator=generator))
    return model.eval()


def images(count=2, size=64):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("method", METHODS)
def test_it_begins_as_the_identity_bit_for_bit(method):
    model = trained(timm.create_model("test_resnet", num_classes=5))
    converted = surgery.convert(model, method, strict=True, input_size=64)
    with torch.no_grad():
        assert torch.equal(converted(images()), model(images()))


@pytest.mark.parametrize("method", METHODS)
def test_residual_branches_end_with_it(method):
    plan = surgery.plan(timm.create_model("resnet18"), method, input_size=64)
    assert [row.site for row in plan.sites] == [f"layer{s}.{b}.bn2" for s in (1, 2, 3, 4) for b in (0, 1)]
    assert all(row.role == "end of a residual branch" for row in plan.sites)


def test_a_network_without_residual_sums_has_it_behind_spatial_convolutions():
    plan = surgery.plan(timm.create_model("vgg11_bn"), "se", input_size=32)
    assert [row.site for row in plan.sites][:2] == ["features.6", "features.10"]  # the activations behind them
    assert any(item.reason.startswith("reads the image") for item in plan.skipped)


def test_insert_chooses_convolutions():
    plan = surgery.plan(timm.create_model("resnet18"), "se", insert="layer1.*.conv1", input_size=64)
    assert [row.site for row in plan.sites] == ["layer1.0.act1", "layer1.1.act1"]
    with pytest.raises(ValueError, match="insert pattern 'layer9' matches no site"):
        surgery.plan(timm.create_model("resnet18"), "se", insert="layer9", input_size=64)


def test_selection_is_as_everywhere():
    plan = surgery.plan(timm.create_model("resnet18"), "se", include="layer4", input_size=64)
    assert [row.site for row in plan.sites] == ["layer4.0.bn2", "layer4.1.bn2"]


def test_the_gate_is_the_published_one_doubled():
    torch.manual_seed(0)
    converted = surgery.convert(nn.Sequential(nn.Conv2d(3, 32, 3, padding=1)), "se", ratio=4, insert="0", input_size=8)
    layer = converted[0].behind
    assert isinstance(layer, SEModule)
    assert layer.fc1.weight.shape == (8, 32, 1, 1)
    nn.init.normal_(layer.fc2.weight)
    x = torch.randn(2, 32, 5, 7)
    hidden = F.relu(F.linear(x.mean((2, 3)), layer.fc1.weight.flatten(1), layer.fc1.bias))
    gate = 2 * torch.sigmoid(F.linear(hidden, layer.fc2.weight.flatten(1), layer.fc2.bias))
    torch.testing.assert_close(layer(x), x * gate[:, :, None, None])


@pytest.mark.parametrize("method", METHODS)
def test_every_copy_is_the_same_and_the_generator_stays_where_it_is(method):
    model = timm.create_model("test_resnet", num_classes=5)
    state = torch.random.get_rng_state()
    one, two = (surgery.convert(model, method, input_size=64).state_dict() for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())


@pytest.mark.parametrize("method", METHODS)
def test_a_state_dict_of_the_original_fits_what_it_fits(method):
    model = timm.create_model("test_resnet", num_classes=5)
    converted = surgery.convert(model, method, input_size=64)
    other = trained(timm.create_model("test_resnet", num_classes=5))
    result = converted.load_state_dict(other.state_dict(), strict=False)
    assert not result.unexpected_keys
    assert all(".behind." in name for name in result.missing_keys)
    with torch.no_grad():
        assert torch.equal(converted.eval()(images()), other(images()))


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)

    def forward(self, image, *, by=1.0):
        return self.conv(image) * by


class CallsByKeyword(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 3, 1), Scaled()

    def forward(self, x):
        return self.second.conv(input=self.first(input=x))


@pytest.mark.parametrize("method", METHODS)
def test_a_module_is_called_as_before(method):
    model = CallsByKeyword()
    converted = surgery.convert(model, method, insert=["first", "second.conv"], ratio=1, input_size=8)
    assert len(history(converted)) == 2
    torch.testing.assert_close(converted(images(2, 8)), model(images(2, 8)))
    layer = WithLayerBehind(Scaled(), nn.Identity())
    x = images(2, 8)
    assert torch.equal(layer(image=x, by=2.0), layer.base(x, by=2.0))


def test_se_with_a_squeeze_in_the_same_network():
    with torch.device("meta"):
        model = timm.create_model("resnet50")
    model = surgery.plan(model, "se").apply(model)
    assert surgery.cost(model).params == 28_088_024
    model = surgery.plan(model).apply(model)
    cost = surgery.cost(model)
    assert cost.macs == 3_158_339_584
    assert len(surgery.plan(timm.create_model("resnet50"), input_size=64).sites) == 16


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [("se", {"ratio": 0}, "ratio=0"), ("cbam", {"kernel": 4}, "kernel=4"), ("cbam", {"ratio": 1.5}, "ratio=1.5")],
)
def test_bad_options_are_named(method, options, message):
    with pytest.raises(ValueError, match=message):
        surgery.plan(timm.create_model("test_resnet"), method, **options)
