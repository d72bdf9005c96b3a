"""Forwards that begin at a part give what whole forwards give."""

import pytest
import timm
import torch

import surgery
from surgery.graph import record
from surgery.sensitivity_analysis.call_log import CallLog
from surgery.sensitivity_analysis.resuming import Resumable, sharing_copy

PARTS = {
    "test_resnet": ["layer1.0", "layer2", "layer4"],
    "test_efficientnet": ["blocks.0", "blocks.2.0", "conv_head"],
    "test_convnext": ["stages.1", "stages.2.blocks.0"],
    "test_vit": ["blocks"],
    "densenet121": ["features.denseblock1", "features.transition2", "features.denseblock4"],
}


@pytest.mark.parametrize("name", PARTS)
def test_a_resumed_forward_gives_what_a_whole_one_gives(name):
    torch.manual_seed(0)
    model = timm.create_model(name).eval()
    size = model.default_cfg["input_size"] if "dense" not in name else (3, 64, 64)
    batches = [torch.randn(2, *size), torch.randn(3, *size)]
    log = CallLog(model, batches[0][:1])
    parts = [part for part in PARTS[name] if part in log.calls]
    assert parts
    resumable = Resumable(model, record(model, size), log, batches)
    with torch.no_grad():
        whole = [model(batch) for batch in batches]
        for part in [*parts, parts[0]]:  # forwards, and back to the first
            resumable.move_to(part)
            for number, batch in enumerate(batches):
                torch.testing.assert_close(resumable.run(number), whole[number], rtol=0, atol=0)
                assert len(resumable.inputs[number]) == len(batch)


def test_a_replacement_takes_the_part_s_place_for_one_run():
    model = surgery.create("cifar_resnet", num_classes=4, layers=[1, 1, 1, 1], channels=[4, 4, 4, 4]).eval()
    x = torch.randn(2, 3, 32, 32)
    resumable = Resumable(model, record(model, (3, 32, 32)), CallLog(model, x[:1]), [x])
    with torch.no_grad():
        resumable.move_to("layer2.0")
        other = sharing_copy(model, model.layer2[0]).layer2[0]
        for parameter in other.parameters():
            parameter.mul_(2)
        changed, own = resumable.run(0, other), resumable.run(0)
        assert torch.equal(own, model(x))
    assert not torch.allclose(changed, own)


def test_a_sharing_copy_has_tensors_of_its_own_in_the_part_alone():
    model = surgery.create("cifar_resnet", num_classes=4, layers=[1, 1, 1, 1], channels=[4, 4, 4, 4])
    copy = sharing_copy(model, model.layer1)
    assert copy.conv1.weight is model.conv1.weight
    assert copy.layer1[0].conv1.weight is not model.layer1[0].conv1.weight
    assert torch.equal(copy.layer1[0].conv1.weight, model.layer1[0].conv1.weight)


def test_the_part_around_a_layer_is_its_block():
    model = surgery.create("cifar_resnet", num_classes=4, layers=[2, 1, 1, 1], channels=[4, 4, 4, 4]).eval()
    log = CallLog(model, torch.randn(1, 3, 32, 32))
    assert log.part_around(["layer1.1.conv1", "layer1.1.conv2"]) == "layer1.1"
    assert log.part_around(["layer1.0.conv3", "layer1.1.conv1"]) == "layer1"
    assert log.part_around(["conv1", "fc"]) == ""
    assert log.done_before("layer1.1") == ["conv1", "bn1", "act1", "maxpool", "layer1.0"]
    assert log.done_before("") == []
