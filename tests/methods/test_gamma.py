import pytest
import timm
import torch
from torch import nn

import surgery
from surgery.graph import record
from surgery.graph.coupling import couple
from surgery.methods.gamma import GammaConfig
from surgery.methods.planners.pruning.gamma import gamma
from surgery.models.csnet import csnet


def chain(*layers):
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)).eval()


def norm(*scales):
    layer = nn.BatchNorm2d(len(scales))
    layer.weight.data.copy_(torch.tensor(scales))
    return layer


def scores_of(model, layer, size=(3, 8, 8)):
    coupling = couple(record(model, size))
    return gamma(model, coupling, size)[coupling.layers[layer].writes].tolist()


def test_along_a_chain_the_least_scale_counts():
    model = chain(
        nn.Conv2d(3, 4, 1), norm(1, -2, 3, 4), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1, groups=4), norm(5, 1, 0, -6)
    )
    assert scores_of(model, "0") == [1, 1, 0, 4]


class Branches(nn.Module):
    """Two branches that are added, and one norm for each of two readers."""

    def __init__(self):
        super().__init__()
        self.one, self.two = (nn.Sequential(nn.Conv2d(3, 4, 1), norm(*s)) for s in ((0, 0, 2, 2), (0, 3, 0, 1)))
        self.left = nn.Sequential(norm(9, 9, 9, 9), nn.Conv2d(4, 2, 1))
        self.right = nn.Sequential(norm(9, 1, 9, 9), nn.Conv2d(4, 2, 1))

    def forward(self, x):
        y = self.one(x) + self.two(x)
        return (self.left(y) + self.right(y)).mean((2, 3))


def test_where_branches_are_added_and_read_the_largest_counts():
    assert scores_of(Branches().eval(), "one.0") == [0, 3, 2, 2]


def test_without_a_norm_a_channel_stays():
    model = chain(nn.Conv2d(3, 4, 1), nn.ReLU())
    assert scores_of(model, "0") == [float("inf")] * 4
    assert not surgery.plan(model, "gamma", input_size=8).sites


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_byobnet", "test_densenet"])
def test_what_is_nothing_goes_and_nothing_changes(name):
    if name not in timm.list_models("test_*"):
        pytest.skip(f"timm {timm.__version__} has no {name}")
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=3).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nothing = torch.rand(module.num_features) < 0.4
            module.weight.data[nothing], module.bias.data[nothing] = 0, 0
    pruned = surgery.convert(model, "gamma", input_size=32).eval()
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(pruned(x), model(x), rtol=1e-4, atol=1e-5)
    assert surgery.cost(pruned, 32).macs < 0.9 * surgery.cost(model, 32).macs


def silenced_csnet():
    """A CSNet some of whose channels are nothing behind every norm on their way."""
    torch.manual_seed(0)
    model = surgery.create("csnet", k=0.5).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data[::3], module.bias.data[::3] = 1e-30, 0
    return model


def test_channels_of_csnet_go_on_each_of_its_maps(tmp_path):
    model = silenced_csnet()
    plan = surgery.plan(model, "gamma", input_size=32)
    pruned = plan.apply(model).eval()
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(pruned(x), model(x), rtol=1e-4, atol=1e-5)
    assert pruned.stages[0][1][0].conv.scales.in_channels == (3, 3)  # of 5 and 5
    surgery.save(pruned, tmp_path / "pruned.safetensors")
    torch.testing.assert_close(surgery.load(tmp_path / "pruned.safetensors").eval()(x), pruned(x))


def test_predicted_cost_of_a_pruned_csnet_is_what_it_costs():
    model = csnet(0.5).eval()
    for options in ({"macs": 0.6}, {"keep": 0.5, "rule": "uniform"}):
        pruned = surgery.convert(model, "gamma", input_size=32, **options)
        share = surgery.cost(pruned, 32).macs / surgery.cost(model, 32).macs
        if "macs" in options:
            assert share == pytest.approx(0.6, abs=0.01)
        assert pruned(torch.randn(1, 3, 32, 32)).shape == (1, 1, 32, 32)


def test_one_channel_of_a_map_stays():
    model = csnet(0.5).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.zeros_(module.weight)
    pruned = surgery.convert(model, "gamma", input_size=32)
    assert pruned.stages[1][0][0].conv.scales.out_channels == (1, 1)


def test_options():
    assert GammaConfig().threshold == 1e-20
    assert GammaConfig(macs=0.5).threshold is None
    with pytest.raises(ValueError, match="macs and threshold are set"):
        GammaConfig(macs=0.5, threshold=1e-3)
    with pytest.raises(ValueError, match="threshold=0: a size of a norm's scale"):
        GammaConfig(threshold=0)
    with pytest.raises(ValueError, match="sfvr does not compare the variances of maps of several sizes"):
        surgery.plan(csnet(0.5), "sfvr", macs=0.7, input_size=32)


def test_nothing_below_the_threshold_is_told_with_the_smallest_scale():
    model = chain(nn.Conv2d(3, 4, 1), norm(1, -0.5, 3, 4), nn.ReLU())
    note = surgery.plan(model, "gamma", threshold=1e-3, input_size=8).notes[0]
    assert "no channel has |γ| below threshold=0.001: the smallest is 0.5" in note


def test_biases_of_attention_are_no_maps():
    model = timm.create_model("levit_128s").eval()
    assert surgery.plan(model, "gamma", macs=0.9, input_size=224).sites


@pytest.mark.parametrize("options", [{"keep": {"a": 0.5}}, {"rule": "uniform"}, {"normalise": True}, {"steps": 2}])
def test_a_threshold_goes_alone(options):
    with pytest.raises(ValueError, match="not with threshold=0.1|are set: one of them"):
        GammaConfig(threshold=0.1, **options)
    with pytest.raises(ValueError, match="threshold=True"):
        GammaConfig(threshold=True)
