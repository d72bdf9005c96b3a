import copy
import functools

import pytest
import timm
import torch
from torch import nn

import surgery

SIZE = 32


@pytest.mark.parametrize(
    ("name", "size"), [("test_resnet", 32), ("test_convnext", 64), ("test_mambaout", 64), ("test_vit", 160)]
)
@torch.no_grad()
def test_what_a_network_tells_of_its_widths_is_true_after_pruning(name, size, tmp_path):
    model = timm.create_model(name, num_classes=5).eval()
    told = model.num_features
    pruned = surgery.convert(model, "l1", macs=0.5, input_size=size)
    assert pruned.num_features < told == model.num_features
    surgery.save(pruned, tmp_path / "m", input_size=size)
    x = torch.randn(2, 3, size, size)
    for network in (pruned, surgery.load(tmp_path / "m")):
        maps = {}
        for entry in network.feature_info:
            module = network.get_submodule(entry["module"])
            module.register_forward_hook(functools.partial(_keep, maps, entry["module"]))
        features = network.forward_features(x)
        assert network.num_features in features.shape[1:]
        assert network.forward_head(features, pre_logits=True).shape == (2, network.head_hidden_size)
        assert all(entry["num_chs"] in maps[entry["module"]].shape[1:] for entry in network.feature_info)
        network.reset_classifier(7)
        assert network(x).shape == (2, 7)


def _keep(maps, name, module, args, output):
    maps[name] = output


def test_a_zeta_that_narrows_leaves_what_it_leaves():
    model = timm.create_model("resnet26", layers=[1, 1, 1, 1], num_classes=5)
    plan = surgery.plan(model, zeta=8, input_size=SIZE)  # inside of blocks alone
    assert "feature_widths" not in {transform.type for transform in plan.transforms}


class Tells(nn.Module):
    """Has timm's names, with other meanings."""

    def __init__(self, error):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.Linear(16, 4)
        self.error, self.num_features, self.feature_info = error, 16, [{"num_chs": 16, "module": "gone"}]

    def forward_features(self, x, more=None):
        if self.error:
            raise KeyError("more")
        return x.flatten(1)

    def forward(self, x):
        return self.head(self.norm(self.conv(x)).relu().mean((2, 3)))


@pytest.mark.parametrize("error", [False, True])
def test_what_no_forward_shows_stays_as_it_is(error):
    model = Tells(error)
    plan = surgery.plan(model, "l1", keep=0.5, input_size=SIZE)
    pruned = plan.apply(copy.deepcopy(model))
    assert pruned.conv.out_channels == 8
    assert (pruned.num_features, pruned.feature_info) == (16, model.feature_info)
