"""The blocks that a converted network and its original have in common."""

import copy

import pytest
import timm
import torch

import surgery
from surgery.core.surgery_layer import SurgeryLayer
from surgery.mimicry.common_blocks import common_blocks
from tests.small_models import narrowed_alone


@pytest.fixture(scope="module")
def networks():
    torch.manual_seed(0)
    original = timm.create_model("resnet26", num_classes=5, channels=(8, 16, 16, 32), layers=(1, 2, 1, 1)).eval()
    return surgery.convert(original, zeta=4), original


def test_blocks_are_the_smallest_that_agree(networks):
    images = torch.randn(2, 3, 64, 64)
    converted, original = networks
    converted.layer1.train()
    assert common_blocks(converted, original, images) == [f"layer{n}" for n in ("1.0", "2.0", "2.1", "3.0", "4.0")]
    assert converted.layer1[0].bn2.training
    converted.eval()
    with pytest.raises(ValueError, match="ResNet has no converted layer"):
        common_blocks(original, original, images)


def test_channels_in_another_order_do_not_compare(networks):
    images, original = torch.randn(2, 3, 64, 64), networks[1]
    converted = surgery.convert(original, zeta=4, match=True)
    with pytest.raises(ValueError, match="model and teacher have their channels in different orders"):
        common_blocks(converted, original, images)
    assert len(common_blocks(converted, surgery.match(original, zeta=4), images)) == 5


def test_narrower_networks_agree_where_the_stream_is(networks):
    narrower = surgery.convert(networks[1], zeta=8)
    assert len(common_blocks(narrower, networks[1], torch.randn(2, 3, 64, 64))) == 5


@pytest.mark.filterwarnings("ignore::surgery.core.errors.ConversionWarning")
def test_networks_that_were_narrowed_alone_have_blocks(networks):
    original = networks[1]
    narrowed = narrowed_alone(copy.deepcopy(original), zeta=8, include=["layer2", "layer4"])
    assert not any(isinstance(module, SurgeryLayer) for module in narrowed.modules())
    assert common_blocks(narrowed, original, torch.randn(2, 3, 64, 64)) == ["layer2.0", "layer2.1", "layer4.0"]


def test_a_layer_with_another_methods_squeeze_in_front_is_a_block(networks):
    converted = surgery.convert(networks[1], "squeeze-conv", mode="downscale", zeta=2, insert="layer2*conv2")
    blocks = ["layer2.0.conv2", "layer2.1.conv2"]
    assert common_blocks(converted, networks[1], torch.randn(2, 3, 64, 64)) == blocks


def test_networks_whose_streams_are_all_narrower_have_none(networks):
    assert common_blocks(surgery.convert(networks[1], "l1", keep=0.5), networks[1], torch.randn(2, 3, 64, 64)) == []
