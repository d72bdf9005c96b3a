import warnings
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

import surgery
from surgery.graph import record
from surgery.graph.channels import channel_groups
from surgery.methods.pix.layer import PiX


def groups_of(name):
    with torch.device("meta"):
        return channel_groups(record(timm.create_model(name)))


def test_residual_stream_is_one_group_and_the_inside_is_free():
    channels = groups_of("resnet50")
    stream = {channels.writes[f"layer1.{i}.conv3"][0].root() for i in range(3)}
    assert len(stream) == 1
    assert set(next(iter(stream)).producers) == {f"layer1.{i}.conv3" for i in range(3)} | {"layer1.0.downsample.0"}
    inside = channels.writes["layer1.1.conv1"][0].root()
    assert (inside.producers, inside.frozen, inside.multiple) == (["layer1.1.conv1"], "", 1)
    assert channels.reads["layer1.1.conv2"][0].root() is inside


def test_logits_are_frozen():
    assert "output" in groups_of("resnet50").writes["fc"][0].root().frozen


def test_grouped_convolutions_ask_for_multiples():
    assert groups_of("resnext50_32x4d").writes["layer1.1.conv1"][0].root().multiple == 32


def test_depthwise_ties_its_sides_and_a_gate_ties_too():
    channels = groups_of("efficientnet_b0")
    expand = channels.writes["blocks.2.1.conv_pw"][0].root()
    assert channels.reads["blocks.2.1.conv_pwl"][0].root() is expand
    assert "blocks.2.1.se.conv_expand" in expand.producers


def test_concatenation_keeps_segments():
    channels = groups_of("densenet121")
    assert len(channels.reads["features.denseblock1.denselayer3.conv1"]) == 3


def test_constant_splits_freeze():
    assert groups_of("res2net50_26w_4s").writes["layer1.1.conv1"][0].root().frozen


class Odd(nn.Module):
    """Two bottlenecks, 16 → 8 → 16; one has in its middle a ``step`` of the network and a feature map (1, 8, 8, 8)."""

    def __init__(self, step, looks_at_values=False):
        super().__init__()
        self.step, self.looks_at_values = step, looks_at_values
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.stem2 = nn.Conv2d(16, 16, 3, padding=1)
        self.heads = nn.ModuleList(nn.Conv2d(16, 8, 1) for _ in range(2))
        self.middles = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(2))
        self.tails = nn.ModuleList(nn.Conv2d(8, 16, 1) for _ in range(2))
        self.alpha, self.scalar = nn.Parameter(torch.randn(8)), nn.Parameter(torch.randn(()))
        self.low = nn.Parameter(torch.full((1, 8, 1, 1), -2.0))
        self.table = torch.randn(1, 8, 8, 8)  # a plain attribute
        self.lists = [torch.randn(1, 8, 1, 1)]

    def forward(self, x):
        if self.looks_at_values and x.sum() > 1e9:
            return x
        x = self.stem(x)
        x = torch.relu(x + self.stem2(torch.relu(x)))
        y = self.middles[0](torch.relu(self.heads[0](x)))
        y = self.tails[0](torch.relu(self.step(self, y)))
        z = self.tails[1](torch.relu(self.middles[1](torch.relu(self.heads[1](x)))))
        return (x + y + z).mean((2, 3))


@torch.jit.script
def scripted(x: torch.Tensor) -> torch.Tensor:
    return x * torch.sigmoid(x)


@dataclass
class Pair:
    one: torch.Tensor
    two: torch.Tensor


def through_objects(net, y):
    pair = Pair(y, y * 2)
    return torch.stack(list({"a": pair.one, "b": pair.two}.values())).sum(0)


class Holder:
    def __init__(self, tensor):
        self.tensor = tensor


STEPS = {
    "a computed vector": lambda net, y: y * torch.sigmoid(net.alpha).view(1, -1, 1, 1),
    "exp and reshape": lambda net, y: y * net.alpha.exp().reshape(1, 8, 1, 1),
    "numbers of pixels": lambda net, y: y + torch.arange(8.0).view(1, 1, 1, 8),
    "numbers of channels": lambda net, y: y + torch.arange(8.0).view(1, 8, 1, 1),
    "a row as long as there are channels": lambda net, y: y + torch.arange(8.0),
    "an expanded scalar": lambda net, y: y * net.scalar.expand(1, 8, 1, 1),
    "an expanded sum": lambda net, y: y * y.sum().expand_as(y),
    "a bare parameter": lambda net, y: y + net.alpha[None, :, None, None],
    "without its batch": lambda net, y: y + net.alpha[:, None, None],
    "a plain attribute": lambda net, y: y + net.table,
    "read by a convolution": lambda net, y: y + net.middles[1](net.table),
    "from_numpy": lambda net, y: y + torch.from_numpy(np.ones((1, 8, 1, 1), np.float32)),
    "from_numpy, read by a convolution": lambda net, y: (
        y + net.middles[1](torch.from_numpy(np.ones((1, 8, 8, 8), np.float32)))
    ),
    "in a list": lambda net, y: y + net.lists[0],
    "a clamp by channel": lambda net, y: torch.clamp(y, min=net.low),
    "type_as": lambda net, y: y.type_as(net.table),
    "a mean over the channels": lambda net, y: y * y.mean(1, keepdim=True),
    "a mean that makes rows channels": lambda net, y: y + y.mean(1)[:, None],
    "a mean of as many rows": lambda net, y: y + y.mean(1).unsqueeze(1),
    "a mean over the batch": lambda net, y: y + y.mean(0),
    "a transposed map": lambda net, y: y.transpose(1, 2),
    "channels shifted by padding": lambda net, y: F.pad(y, (0, 0, 0, 0, 1, -1)),
    "rows as channels": lambda net, y: torch.cat([y.permute(0, 2, 1, 3), y], 0)[:1],
    "twice the same": lambda net, y: torch.cat([y, y], 1)[:, :8],
    "along the width": lambda net, y: torch.cat([y, y], 3)[..., ::2],
    "stacked": lambda net, y: torch.stack([y, y], 1)[:, 0],
    "split and joined": lambda net, y: torch.cat(y.chunk(2, 1), 1),
    "einsum": lambda net, y: torch.einsum("nchw,c->nchw", y, net.alpha),
    "functional convolution": lambda net, y: F.conv2d(y, torch.eye(8)[:, :, None, None]),
    "in place": lambda net, y: y.add_(1).mul_(net.scalar),
    "out of a scripted function": lambda net, y: scripted(y),
    "an empty tensor": lambda net, y: torch.cat([y, y[:, :0]], 1),
    "a matrix product": lambda net, y: (y.flatten(2).transpose(1, 2) @ net.alpha.diag()).transpose(1, 2).view_as(y),
    "an object": lambda net, y: Holder(y).tensor * Holder(2).tensor,
    "objects in containers": through_objects,
    "topk": lambda net, y: y * y.flatten(2).topk(1)[0].unsqueeze(-1),
    "max with places": lambda net, y: y + y.max(1, keepdim=True)[0],
    "a boolean mask": lambda net, y: torch.where(y > 0, y, net.low),
    "sorted": lambda net, y: y.sort(1)[0],
    "complex numbers": lambda net, y: torch.fft.ifft2(torch.fft.fft2(y)).real,
    "a gate of a vector": lambda net, y: y * F.linear(y.mean((2, 3)), torch.eye(8))[:, :, None, None],
}


@pytest.mark.parametrize("looks_at_values", [False, True])
@pytest.mark.parametrize("name", STEPS)
def test_what_is_not_understood_freezes_and_never_raises(name, looks_at_values):
    """Whatever a block computes, narrowing gives a network that runs, and the block beside it is narrowed."""
    torch.manual_seed(0)
    net = Odd(STEPS[name], looks_at_values)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        converted = surgery.convert(net, zeta=4, input_size=(3, 8, 8))
    assert isinstance(converted.heads[1], PiX)
    assert converted.heads[1].out_channels == (8 if "read by a convolution" in name else 4)
    assert converted(torch.randn(1, 3, 8, 8)).shape == (1, 16)


@pytest.mark.parametrize("wrap", [dict, list, tuple, Holder, OrderedDict])
def test_outputs_are_frozen_in_whatever_they_are_returned(wrap):
    class Wrapped(Odd):
        def forward(self, x):
            y = self.heads[0](self.stem(x))
            return wrap({"y": y}) if issubclass(wrap, dict) else wrap(y) if wrap is Holder else wrap([y])

    writes = channel_groups(record(Wrapped(None), (3, 8, 8))).writes["heads.0"][0]
    assert "output" in writes.root().frozen


def test_an_unbatched_map_freezes():
    class Single(Odd):
        def forward(self, x):
            return self.middles[0](self.heads[0](self.stem(x)[0]))

    channels = channel_groups(record(Single(None), (3, 8, 8)))
    assert channels.writes["heads.0"][0].root().frozen
