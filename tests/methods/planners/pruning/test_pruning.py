"""Networks of every family, pruned to a share of their MACs: they run, cost what was predicted, and are rebuilt."""

import dataclasses
import json

import numpy as np
import pytest
import timm
import torch
import torchvision
from torch import nn

from surgery.graph import record
from surgery.graph.skeleton import meta_copy
from surgery.methods.planners.pruning.pruning import PruningRequest, prune_plan
from surgery.methods.planners.pruning.scores import l1, random
from surgery.models.cifar_resnet import cifar_resnet
from surgery.planning.cost import graph_cost
from surgery.transforms.slicing import Sizes, slice_channels
from tests.small_models import Bottleneck, Net

SMALL = {"num_classes": 5}


class Flattened(nn.Sequential):
    """A linear layer that reads every pixel of every channel."""

    def __init__(self):
        first, second = nn.Conv2d(3, 16, 3, stride=4), nn.Conv2d(16, 16, 3, stride=4)
        super().__init__(first, nn.ReLU(), second, nn.Flatten(), nn.Linear(16 * 36, 32), nn.ReLU(), nn.Linear(32, 5))


class Auxiliary(nn.Module):
    """A head that only training has, as GoogLeNet's."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 64, 3, stride=4), nn.BatchNorm2d(64), nn.ReLU())
        self.more, self.head, self.auxiliary = nn.Conv2d(64, 64, 3), nn.Linear(64, 5), nn.Conv2d(64, 5, 1)

    def forward(self, x):
        x = self.body(x)
        out = self.head(self.more(x).mean((2, 3)))
        return (out, self.auxiliary(x).mean((2, 3))) if self.training else out


class OfAnotherWidth(nn.Module):
    """A block that reshapes its attention to the width of its input."""

    def __init__(self):
        super().__init__()
        self.stem, self.qkv, self.out = nn.Linear(12, 16), nn.Linear(16, 48), nn.Linear(16, 16)
        self.fc1, self.fc2 = nn.Linear(16, 64), nn.Linear(64, 5)

    def forward(self, x):
        x = self.stem(x.flatten(2).transpose(1, 2).reshape(x.shape[0], -1, 12))
        q, k, v = self.qkv(x).reshape(x.shape[0], -1, 3, 16).unbind(2)
        x = self.out(torch.nn.functional.scaled_dot_product_attention(q, k, v).reshape(x.shape))
        return self.fc2(torch.relu(self.fc1(x))).mean(1)


NETWORKS = {
    "cifar_resnet": lambda: cifar_resnet((1, 1, 2, 1), (16, 16, 32, 32), stem_stride=2),
    "grouped": lambda: timm.create_model("regnety_002", **SMALL),
    "depthwise": lambda: timm.create_model("mobilenetv3_small_050", **SMALL),
    "concatenations": lambda: timm.create_model("densenet121", block_config=(2, 2, 2, 2), **SMALL),
    "flattened": lambda: Flattened(),
    "shuffles": lambda: torchvision.models.shufflenet_v2_x0_5(**SMALL),
    "ghosts": lambda: timm.create_model("ghostnet_050", **SMALL),
    "auxiliary head": lambda: Auxiliary(),
    "split attention": lambda: timm.create_model("resnest14d", **SMALL),
    "scales": lambda: timm.create_model("res2net50_26w_4s", layers=(1, 1, 1, 1), **SMALL),
    "mixed tokens": lambda: timm.create_model("mixer_s32_224", **SMALL),
    "windows": lambda: timm.create_model("swin_tiny_patch4_window7_224", depths=(1, 1, 1, 1), **SMALL),
    **{
        name: lambda name=name: timm.create_model(name, **SMALL)
        for name in ("test_efficientnet_evos", "test_efficientnet_ln", "test_mambaout", "test_nfnet", "test_coatnet")
    },
}

WHOLE = (
    *("resnet18", "resnet50", "regnety_016", "resnest50d", "res2net50_26w_4s", "densenet121", "vgg16_bn"),
    *("mobilenetv2_100", "mobilenetv3_large_100", "efficientnet_b0", "ghostnet_100", "hrnet_w18_small"),
    *("convnext_tiny", "swin_tiny_patch4_window7_224", "vit_small_patch16_224", "mixer_s32_224", "googlenet"),
    *("shufflenet_v2_x1_0",),
)


def side_of(name: str) -> int:
    if name in ("mixed tokens", "windows"):
        return 224
    if name.startswith("test_"):
        return timm.get_pretrained_cfg(name).input_size[-1]
    return 32 if name == "cifar_resnet" else 96


def pruned_and_rebuilt(model: nn.Module, side: int, request: PruningRequest):
    """A model pruned in place and checked, its plan, and the largest difference to one that its form rebuilds."""
    rebuilt = meta_copy(model.eval())
    graph = record(model, (3, side, side))
    result = prune_plan(graph, model, l1, request)
    slice_channels(model, result.sizes, result.keep)
    assert graph_cost(record(model, graph.input_shape)).macs == result.macs
    assert sum(parameter.numel() for parameter in model.parameters()) == result.params
    slice_channels(rebuilt, Sizes.from_json(json.loads(json.dumps(result.sizes.to_json()))))
    buffers = dict(model.named_buffers())
    rebuilt.to_empty(device="cpu").load_state_dict(model.state_dict(), strict=True)
    for name, tensor in rebuilt.named_buffers():  # those that no file holds are the builder's
        tensor.copy_(buffers[name])
    images = torch.randn(2, 3, side, side)
    logits = model(images)
    assert torch.equal(rebuilt.eval()(images), logits)
    logits.square().sum().backward()
    assert torch.isfinite(logits).all()
    out = model.train()(images)
    sum(o.sum() for o in (out if isinstance(out, tuple) else (out,))).backward()
    return result


@pytest.mark.parametrize("name", NETWORKS)
def test_seven_tenths_of_the_macs(name):
    torch.manual_seed(0)
    result = pruned_and_rebuilt(NETWORKS[name](), side_of(name), PruningRequest(macs=0.7))
    assert not result.note
    assert result.macs / result.original_macs == pytest.approx(0.7, abs=0.01)
    assert all(1 <= row.after < row.before for row in result.rows)


@pytest.mark.slow  # pytest -m slow tests/methods/planners/pruning -k whole: two minutes
@pytest.mark.parametrize(
    "name",
    WHOLE,
)
def test_whole_networks(name):
    if name in ("googlenet", "shufflenet_v2_x1_0"):
        model = getattr(torchvision.models, name)()
    else:
        model = timm.create_model(name)
    result = pruned_and_rebuilt(model, 224, PruningRequest(macs=0.7))
    assert result.macs / result.original_macs == pytest.approx(0.7, abs=0.01)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    model = cifar_resnet((1, 1, 2, 1), (16, 16, 32, 32), stem_stride=2).eval()
    return model, record(model, (3, 32, 32))


@pytest.mark.parametrize("rule", ["uniform", "global"])
@pytest.mark.parametrize("target", [{"macs": 0.5}, {"params": 0.6}, {"macs": 0.9}])
def test_targets_are_met_within_a_hundredth(network, rule, target):
    model, graph = network
    result = prune_plan(graph, model, l1, PruningRequest(**target, rule=rule))
    reached = {"macs": result.macs / result.original_macs, "params": result.params / result.original_params}
    for name, share in target.items():
        assert reached[name] == pytest.approx(share, abs=0.01)


def test_a_target_out_of_reach_is_named_with_the_nearest(network):
    model, graph = network
    result = prune_plan(graph, model, l1, PruningRequest(macs=0.1, least_share=0.5))
    reached = result.macs / result.original_macs
    assert f"macs=0.1 cannot be met within 1 %: the nearest share is {reached:.3f}" in result.note
    assert reached > 0.2


def test_round_to_gives_multiples(network):
    model, graph = network
    result = prune_plan(graph, model, l1, PruningRequest(macs=0.6, round_to=8))
    assert result.rows
    assert all(row.after % 8 == 0 for row in result.rows)


def test_shares_by_pattern_leave_the_rest(network):
    model, graph = network
    result = prune_plan(graph, model, l1, PruningRequest(keep={"layer3.?.conv1": 0.5, "layer3.0.conv1*": 0.25}))
    assert {row.name: row.after / row.before for row in result.rows} == {
        "layer3.0.conv1": 0.25,
        "layer3.1.conv1": 0.5,
    }
    both = prune_plan(graph, model, l1, PruningRequest(keep={"layer3.0.conv1": 0.25}, macs=0.7))
    assert {row.name: row.after for row in both.rows}["layer3.0.conv1"] == 8
    assert both.macs / both.original_macs == pytest.approx(0.7, abs=0.01)


def test_excluded_and_frozen_channels_stay_with_the_reason(network):
    model, graph = network
    result = prune_plan(graph, model, l1, PruningRequest(keep=0.5, include=["layer2", "layer3"], exclude="layer3"))
    reasons = {skip.name: skip.reason for skip in result.skipped}
    assert reasons["layer1.0.conv1"] == "not in include="
    assert reasons["layer3.1.conv1"] == "in exclude="
    assert reasons["fc"] == "it is the model's output"
    assert not any(row.name.startswith("layer3") for row in result.rows)
    with pytest.raises(ValueError, match=r"include pattern 'layer9' matches no layer whose channels can go"):
        prune_plan(graph, model, l1, PruningRequest(keep=0.5, include="layer9"))


def test_what_a_forward_cannot_do_without_stays():
    model = OfAnotherWidth().eval()
    result = prune_plan(record(model, (3, 16, 16)), model, l1, PruningRequest(keep=0.5))
    reasons = {skip.name: skip.reason for skip in result.skipped}
    assert reasons["stem"].startswith("the forward fails with fewer channels there (the forward of OfAnotherWidth")
    assert reasons["qkv"] == "scaled_dot_product_attention reads it in a way that is not followed"
    assert "fc1" in {row.name for row in result.rows}
    slice_channels(model, result.sizes, result.keep)
    assert model(torch.randn(2, 3, 16, 16)).shape == (2, 5)


def test_steps_ask_again_of_what_is_left(network):
    model, graph = network
    widths = []

    def watched(current, coupling):
        widths.append(sum(parameter.numel() for parameter in current.parameters()))
        return l1(current, coupling)

    recalculated = []
    request = PruningRequest(macs=0.5, steps=3, rule="global")
    result = prune_plan(graph, model, watched, request, recalculate=recalculated.append)
    assert widths[0] > widths[1] > widths[2] > result.params
    assert len(recalculated) == 2
    assert result.macs / result.original_macs == pytest.approx(0.5, abs=0.01)


def test_with_scores_that_do_not_change_steps_end_where_one_does(network):
    model, graph = network
    once = prune_plan(graph, model, random, PruningRequest(keep=0.5))
    thrice = prune_plan(graph, model, random, PruningRequest(keep=0.5, steps=3))
    np.testing.assert_array_equal(once.gone, thrice.gone)


def test_dead_filters_go_first_and_nothing_changes():
    """Without what is always zero a network computes the same."""
    torch.manual_seed(0)
    model = Net("module", "module").eval()
    graph = record(model, (3, 16, 16))
    with torch.no_grad():
        for block in model.blocks:
            block.conv1.weight[[1, 3]] = 0
            block.bn1.bias[[1, 3]] = 0
            block.bn1.running_mean[[1, 3]] = 0
        x = torch.randn(2, 3, 16, 16)
        before = model(x)
        result = prune_plan(graph, model, l1, PruningRequest(keep={"blocks.*.conv1": 0.5}))
        slice_channels(model, result.sizes, result.keep)
        torch.testing.assert_close(model(x), before)
    assert isinstance(model.blocks[0], Bottleneck)
    assert model.blocks[0].conv1.out_channels == 2


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({}, "how much stays is not said"),
        ({"macs": 0.7, "params": 0.7}, "macs and params are set"),
        ({"macs": 0.7, "keep": 0.5}, "macs and keep are set"),
        ({"macs": 0}, "macs=0: a share above 0"),
        ({"macs": 1.5}, "macs=1.5: a share above 0"),
        ({"keep": float("nan")}, "keep=nan"),
        ({"keep": {}}, "name patterns with their shares"),
        ({"keep": {"a": 2}}, r"keep\['a'\]=2"),
        ({"macs": 0.7, "rule": "best"}, "rule='best'"),
        ({"macs": 0.7, "round_to": 0}, "round_to=0"),
        ({"macs": 0.7, "least_share": 1.0}, "least_share=1.0"),
    ],
)
def test_requests_are_checked(arguments, says):
    with pytest.raises(ValueError, match=says):
        PruningRequest(**arguments)


@pytest.mark.parametrize(
    "arguments", [{"macs": "0.7"}, {"macs": True}, {"keep": {3: 0.5}}, {"macs": 0.7, "include": 3}]
)
def test_requests_of_other_types_are_refused(arguments):
    with pytest.raises(TypeError, match="needed"):
        PruningRequest(**arguments)


def test_the_model_itself_is_not_changed(network):
    model, graph = network
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    request = PruningRequest(macs=0.5, steps=2)
    prune_plan(graph, model, l1, request)
    assert dataclasses.replace(request) == request
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
