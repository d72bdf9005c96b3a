"""Channels that live and die together: a network without some of them runs, and costs what the coupling says."""

import numpy as np
import pytest
import timm
import torch
import torchvision
from torch import nn

from surgery.graph import record
from surgery.graph.coupling import couple
from surgery.graph.skeleton import meta_copy
from surgery.planning.cost import graph_cost
from tests.small_models import Bottleneck


def without(model, coupling, gone):
    """The model on meta without the classes ``gone``, by the sides and layers of the coupling."""
    smaller = meta_copy(model)
    for side in coupling.sides:
        keep = torch.from_numpy(np.flatnonzero(~np.isin(side.numbers, gone)))
        owner = smaller.get_submodule(side.module)
        tensor = getattr(owner, side.parameter)
        kept = tensor.detach().index_select(side.dim, keep.to("meta"))
        setattr(owner, side.parameter, nn.Parameter(kept) if isinstance(tensor, nn.Parameter) else kept)
        for name in ("num_features", "num_channels"):
            if hasattr(owner, name):
                setattr(owner, name, len(keep))
        if isinstance(owner, nn.LayerNorm):
            owner.normalized_shape = (len(keep),)
    for name, layer in coupling.layers.items():
        module = smaller.get_submodule(name)
        into, out = (int((~np.isin(numbers, gone)).sum()) for numbers in (layer.reads, layer.writes))
        if isinstance(module, nn.Linear):
            module.in_features, module.out_features = into, out
        else:
            module.groups = into if module.groups == module.in_channels else module.groups
            module.in_channels, module.out_channels = into, out
    return smaller


def a_third(coupling):
    """Removable classes, a third of them at random, but for one of every layer's inputs and outputs."""
    removable = coupling.removable()
    sides = (numbers for layer in coupling.layers.values() for numbers in (layer.reads, layer.writes))
    first = np.array([numbers[0] for numbers in sides])
    gone = np.random.default_rng(0).permutation(removable)[: len(removable) // 3]
    return gone[~np.isin(gone, first)]


SMALL = {"num_classes": 5}
NETWORKS = {
    "resnet18": lambda: timm.create_model("resnet18", **SMALL),
    "grouped": lambda: timm.create_model("regnety_002", **SMALL),
    "depthwise": lambda: timm.create_model("mobilenetv3_small_050", **SMALL),
    "concatenations": lambda: timm.create_model("densenet121", block_config=(2, 2, 2, 2), **SMALL),
    "flattened": lambda: torchvision.models.vgg11(**SMALL),
    "shuffles": lambda: torchvision.models.shufflenet_v2_x0_5(**SMALL),
    "ghosts": lambda: timm.create_model("ghostnet_050", **SMALL),
    "branches": lambda: timm.create_model("hrnet_w18_small", **SMALL),
    "channels last": lambda: timm.create_model("convnext_atto", **SMALL),
    "tokens": lambda: timm.create_model("vit_tiny_patch16_224", depth=2, **SMALL),
    "windows": lambda: timm.create_model("swin_tiny_patch4_window7_224", depths=(1, 1, 1, 1), **SMALL),
    "mixed tokens": lambda: timm.create_model("mixer_s32_224", **SMALL),
    "split attention": lambda: timm.create_model("resnest14d", **SMALL),
    "scales": lambda: timm.create_model("res2net50_26w_4s", layers=(1, 1, 1, 1), **SMALL),
    "dual paths": lambda: timm.create_model("dpn68", **SMALL),
    "norm-free": lambda: timm.create_model("test_nfnet", **SMALL),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_without_some_channels_a_network_runs_and_costs_what_the_coupling_says(name):
    with torch.device("meta"):
        model = NETWORKS[name]()
    graph = record(model, (3, 224, 224))
    coupling = couple(graph)
    gone = a_third(coupling)
    assert len(gone) > 100
    left = graph_cost(record(without(model, coupling, gone), graph.input_shape)).macs
    saved = sum(
        layer.macs - layer.macs_left(~np.isin(np.arange(coupling.count()), gone)) for layer in coupling.layers.values()
    )
    assert saved > 0.02 * graph_cost(graph).macs
    assert graph_cost(graph).macs - saved == pytest.approx(left, rel=1e-9)


def test_outputs_and_what_is_not_understood_stay_with_the_reason():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.block = nn.Conv2d(3, 16, 1), Bottleneck()
            self.last = nn.Conv2d(16, 5, 1)

        def forward(self, x):
            return self.last(torch.cumsum(self.block(self.first(x)), 1))

    coupling = couple(record(Odd(), (3, 8, 8)))
    reasons = {coupling.frozen.get(int(number)) for number in coupling.layers["last"].writes}
    assert reasons == {"it is the model's output"}
    (reason,) = {coupling.frozen.get(int(number)) for number in coupling.layers["first"].writes}
    assert reason == "cumsum reads it in a way that is not followed"
    removable = coupling.removable()
    assert np.isin(coupling.layers["block.conv1"].writes, removable).all()


def test_a_residual_stream_is_one_set_of_channels():
    coupling = couple(
        record(nn.Sequential(nn.Conv2d(3, 16, 1), Bottleneck(), Bottleneck(), nn.Conv2d(16, 2, 1)), (3, 8, 8))
    )
    stream = coupling.layers["0"].writes
    for name in ("1.conv3", "2.conv3"):
        assert np.array_equal(coupling.layers[name].writes, stream)
    for name in ("1.conv1", "2.conv1", "3"):
        assert np.array_equal(coupling.layers[name].reads, stream)


def test_tied_weights_and_buffers_that_no_file_holds_stay():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.one, self.two = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
            self.two.weight = self.one.weight
            self.register_buffer("gain", torch.ones(8, 1, 1), persistent=False)
            self.free, self.last = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 5, 1)

        def forward(self, x):
            x = self.two(self.one(self.first(x)))
            return self.last(torch.relu(self.free(x)) * self.gain)

    coupling = couple(record(Tied(), (3, 8, 8)))
    assert not len(coupling.removable())
    assert "one" not in coupling.layers


def test_the_scales_of_tokens_and_norms_whose_channels_come_first_are_followed():
    tokens = couple(record(timm.create_model("test_vit_relpos", **SMALL)))
    assert ("blocks.0.ls1", "gamma") in {(side.module, side.parameter) for side in tokens.sides}
    first = couple(record(timm.create_model("test_efficientnet_ln", **SMALL)))
    assert set(first.frozen.values()) <= {"it is the model's output", "not a channel"}
    assert np.isin(first.layers["conv_stem"].writes, first.removable()).all()


@pytest.mark.parametrize("pool", ["avg", "max"])
@pytest.mark.parametrize("flatten", [False, True])
def test_timms_pooling_of_channels_last_maps_is_followed(pool, flatten):
    class ChannelsLast(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(3, 8)
            self.pool = timm.layers.SelectAdaptivePool2d(pool_type=pool, flatten=flatten, input_fmt="NHWC")
            self.head = nn.Linear(8, 5)

        def forward(self, x):
            return self.head(self.pool(self.first(x.permute(0, 2, 3, 1))))

    model = ChannelsLast()
    coupling = couple(record(model, (3, 16, 16)))
    assert set(coupling.layers["first"].writes) <= set(coupling.removable())
    assert list(coupling.layers["first"].writes) == list(coupling.layers["head"].reads)
