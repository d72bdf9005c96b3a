import timm
import torch

from surgery.graph import record
from surgery.graph.channels import channel_groups


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
