import copy

import pytest
import timm
import torch
from torch import nn

import surgery
from surgery.methods.planners.importance import CRITERIA, criterion, l1, strongest
from surgery.transforms.carry_out import apply


def test_strongest_takes_as_many_from_each_block():
    scores = torch.tensor([1.0, 5.0, 4.0, 0.0, 9.0, 8.0, 7.0, 9.0])
    assert strongest(scores, 3) == [4, 5, 7]
    assert strongest(scores, 4, groups=2) == [1, 2, 4, 7]


def test_criteria_register_once():
    def own(weight):
        return weight.abs().flatten(1).sum(1)

    with pytest.raises(ValueError, match="'l1' is registered already"):
        criterion("l1")(own)
    assert criterion("l1")(l1) is l1  # a module that is loaded again
    assert {"l1": l1} == CRITERIA


@torch.no_grad()
def test_keeps_the_strongest_filters_and_the_function_of_what_is_kept():
    """Filters of zero weight go first; removing them (with zero BatchNorm shift) changes nothing."""
    torch.manual_seed(0)
    model = timm.create_model("resnet26", layers=[1, 1, 2, 1]).eval()
    for block in (m for m in model.modules() if type(m).__name__ == "Bottleneck"):
        for conv, norm in ((block.conv1, block.bn1), (block.conv2, block.bn2)):
            dead = torch.randperm(conv.out_channels)[: conv.out_channels // 2]
            conv.weight[dead] = 0
            norm.bias[dead] = 0
            norm.running_mean[dead] = 0
    decided = surgery.plan(model, zeta=8)
    narrowed = copy.deepcopy(model)
    apply(narrowed, decided.transforms[:1], choosing=True)
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(narrowed(x), model(x), rtol=1e-4, atol=1e-4)
    assert narrowed.layer3[1].conv2.weight.shape == (128, 128, 3, 3)


@torch.no_grad()
def test_grouped_convolution_keeps_its_function():
    torch.manual_seed(0)
    model = timm.create_model("resnext50_32x4d", layers=[1, 2, 1, 1]).eval()
    block = model.layer2[1]
    for conv, norm in ((block.conv1, block.bn1), (block.conv2, block.bn2)):
        dead = torch.arange(0, conv.out_channels, 2) + torch.randint(2, (conv.out_channels // 2,))
        conv.weight[dead] = 0
        norm.bias[dead] = 0
        norm.running_mean[dead] = 0
    decided = surgery.plan(model, zeta={"layer2.1": 4}, include="layer2.1")
    narrowed = copy.deepcopy(model)
    apply(narrowed, decided.transforms[:1], choosing=True)
    assert narrowed.layer2[1].conv2.weight.shape == (128, 4, 3, 3)
    x = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(narrowed(x), model(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("seresnet50", {"layers": [1, 2, 1, 1]}),
        ("ecaresnet50t", {"layers": [1, 2, 1, 1]}),
        ("nfnet_f0", {}),
        ("densenet121", {"block_config": [2, 3, 2, 2]}),
        ("resnest50d", {"layers": [1, 2, 1, 1]}),
        ("inception_v3", {}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_narrowed_networks_run_and_reload(name, kwargs, tmp_path):
    torch.manual_seed(0)
    kwargs = {**kwargs, "num_classes": 5}
    model = timm.create_model(name, **kwargs)
    converted = surgery.convert(model, zeta=12).eval()
    x = torch.randn(1, 3, 96, 96)
    surgery.save(converted, tmp_path / "m.safetensors", source=f"timm/{name}", kwargs=kwargs)
    loaded = surgery.load(tmp_path / "m.safetensors")
    assert torch.equal(loaded(x), converted(x))
    assert sum(p.numel() for p in converted.parameters()) <= sum(p.numel() for p in model.parameters())


def test_a_split_of_constant_sizes_keeps_its_width_and_says_so():
    model = timm.create_model("res2net50_26w_4s")
    plan = surgery.plan(model, zeta=8)
    assert all("split" in row.note for row in plan.sites)
    assert plan.sites[1].channels == (256, 104)


def test_projections_keep_theirs_and_say_so():
    plan = surgery.plan(timm.create_model("mobilenetv2_100"), zeta=12)
    assert all("residual stream" in row.note for row in plan.sites)


def test_depthwise_follows():
    class Mobile(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 16, 3, padding=1)
            self.squeeze = nn.Conv2d(16, 8, 1)
            self.depth = nn.Conv2d(8, 8, 3, padding=1, groups=8)
            self.expand = nn.Conv2d(8, 16, 1)

        def forward(self, x):
            x = torch.relu(self.stem(x))
            return x + self.expand(torch.relu(self.depth(torch.relu(self.squeeze(x)))))

    converted = surgery.convert(Mobile(), zeta=4, input_size=(3, 8, 8))
    assert (converted.depth.groups, converted.depth.weight.shape) == (4, (4, 1, 3, 3))
    assert converted.expand.weight.shape == (16, 4, 1, 1)
    assert converted(torch.randn(1, 3, 8, 8)).shape == (1, 16, 8, 8)
