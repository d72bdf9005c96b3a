import copy

import pytest
import timm
import torch
from torch import nn

import surgery
from surgery.training.block_distillation import BlockDistillationTask, distilled_blocks
from surgery.training.recipe import TrainSettings


@pytest.fixture(scope="module")
def networks():
    torch.manual_seed(0)
    original = timm.create_model("resnet26", num_classes=5, channels=(8, 16, 16, 32), layers=(1, 2, 1, 1)).eval()
    return surgery.convert(original, zeta=4), original


def test_loss_is_the_mean_share_of_the_variance(networks):
    converted, original = (copy.deepcopy(network).eval() for network in networks)
    images, labels = torch.randn(4, 3, 64, 64), torch.tensor([0, 1, 2, 3])
    options = {
        "criterion": nn.CrossEntropyLoss(),
        "task_loss_weight": 0.5,
        "distill_loss_weight": 0.5,
        "verbose": False,
    }
    blocks = ["layer1.0", "layer4.0"]
    task = BlockDistillationTask(converted, original, blocks=blocks, block_weight=3.0, **options)
    plain = BlockDistillationTask(converted, original, blocks=[], block_weight=3.0, **options)
    result, without = task(images, labels), plain(images, labels)
    student_outputs, teacher_outputs = (
        [n.layer1(n.maxpool(n.act1(n.bn1(n.conv1(images)))))] for n in (converted, original)
    )
    for outputs, network in ((student_outputs, converted), (teacher_outputs, original)):
        outputs.append(network.layer4(network.layer3(network.layer2(outputs[0]))))
    shares = [((a - b) ** 2).mean() / b.var() for a, b in zip(student_outputs, teacher_outputs, strict=True)]
    assert result["block_loss"].item() == pytest.approx(sum(shares).item() / 2, rel=1e-4)
    assert result["loss"].item() == pytest.approx(without["loss"].item() + 3 * result["block_loss"].item(), rel=1e-4)
    assert "block_loss" not in without
    result["loss"].backward()
    assert all(p.grad is not None for p in converted.layer4.parameters())
    assert all(p.grad is None for p in original.parameters())
    assert not converted.layer1[0]._forward_hooks


def test_networks_whose_streams_are_all_narrower_have_no_blocks(networks):
    narrower = surgery.convert(networks[1], "l1", keep=0.5)
    settings = TrainSettings(block_weight=1.0)
    with pytest.warns(UserWarning, match="ResNet has no block .* the logits alone are"):
        assert distilled_blocks(settings, narrower, networks[1], (3, 64, 64), torch.device("cpu")) == []
