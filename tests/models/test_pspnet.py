import pytest
import torch

import surgery
from surgery.core.errors import SourceError
from surgery.transforms.history import changed_modules

SMALL = {
    "backbone": "resnet26",
    "num_classes": 5,
    "width": 16,
    "backbone_kwargs": {"channels": [8, 16, 16, 32], "layers": [1, 1, 1, 1]},
}


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return surgery.create("pspnet", **SMALL).eval()


def test_a_map_of_the_image_s_size_and_in_training_two(network):
    images = torch.randn(2, 3, 65, 50)
    assert network(images).shape == (2, 5, 65, 50)
    network.train()
    assert [logits.shape for logits in network(images)] == [(2, 5, 65, 50)] * 2
    network.eval()


def test_output_stride_and_pyramid(network):
    third, fourth = network.backbone(torch.randn(1, 3, 64, 48))
    assert third.shape[-2:] == fourth.shape[-2:] == (8, 6)
    assert fourth.shape[1] == 128
    assert network.pyramid(fourth).shape == (1, 256, 8, 6)
    pooled = network.pyramid.convs[1](torch.nn.functional.adaptive_avg_pool2d(fourth, 2))
    enlarged = torch.nn.functional.interpolate(pooled, (8, 6), mode="bilinear", align_corners=False)
    assert torch.equal(network.pyramid(fourth)[:, 128 + 32 : 128 + 64], enlarged)


def test_activations_may_be_computed_twice(network):
    images, gradients = torch.randn(2, 3, 40, 40), []
    for enable in (False, True):
        network.set_grad_checkpointing(enable)
        network.train().zero_grad()
        torch.manual_seed(0)
        network(images)[0].square().mean().backward()
        gradients.append(network.backbone.conv1.weight.grad.clone())
    network.set_grad_checkpointing(False)
    network.eval()
    torch.testing.assert_close(gradients[0], gradients[1])


def test_of_the_papers_size():
    with torch.device("meta"):
        network = surgery.create("pspnet", backbone="resnet101")
    shapes = {name: tuple(weight.shape) for name, weight in network.state_dict().items() if weight.ndim == 4}
    assert shapes["pyramid.convs.3.0.weight"] == (512, 2048, 1, 1)
    assert shapes["head.0.0.weight"] == (512, 4096, 3, 3)
    assert shapes["auxiliary.0.0.weight"] == (256, 1024, 3, 3)
    assert network.backbone.layer4[2].conv2.dilation == (4, 4)


def test_converted_saved_loaded_exported(network, tmp_path):
    converted = surgery.convert(network, zeta=4, input_size=(3, 64, 64))
    assert set(changed_modules(converted)) == {f"backbone.layer{stage}.0.conv1" for stage in (1, 2, 3, 4)}
    surgery.save(converted, tmp_path / "m.safetensors")
    loaded = surgery.load(tmp_path / "m.safetensors")
    images = torch.randn(1, 3, 72, 64)
    with torch.no_grad():
        assert torch.equal(loaded(images), converted.eval()(images))
    # exporters take the pyramid's windows for constants
    with pytest.warns(UserWarning, match="height and width are fixed"):
        surgery.export(loaded, tmp_path / "m.onnx", input_size=(3, 64, 64))


def test_calibrated_but_for_the_wide_head(network):
    wide = surgery.create(
        "pspnet", **{**SMALL, "backbone_kwargs": {**SMALL["backbone_kwargs"], "channels": [8, 16, 16, 80]}}
    ).eval()
    converted = surgery.convert(wide, zeta=4, input_size=(3, 64, 64))
    report = surgery.calibrate(converted, wide, [torch.randn(4, 3, 64, 64)], progress=False)
    assert {item.name: item.reason for item in report.skipped}["head.0.0"].startswith("5760 unknowns for each output")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 1}, r"width=1, bins=\[1, 2, 3, 6\]"),
        ({"bins": []}, r"bins=\[\]"),
        ({"backbone": "vgg11"}, "cannot be built"),
        ({"bins": [1] * 100_000}, "at most 1000 values"),
        ({"bins": [1] * 17}, "at most 16 sides from 1 to 128"),
        ({"bins": [10**6]}, "at most 16 sides from 1 to 128"),
        ({"bins": [1.5]}, r"bins=\[1.5\]"),
        ({"width": "8"}, "width='8'"),
        ({"backbone": "hf-hub:timm/resnet18"}, "a short text that names no file"),
        ({"backbone": "resnet0"}, "name='resnet0': the name of a model that timm lists"),
        ({"backbone_kwargs": {"checkpoint_path": "w"}}, "backbone_kwargs.checkpoint_path: what names weights"),
        ({"backbone_kwargs": {"pretrained_cfg": {}}}, "backbone_kwargs.pretrained_cfg: what names weights"),
        ({"backbone_kwargs": [1]}, "a dict of keyword arguments is needed"),
        ({"backbone": "resnet26", "colour": 3}, "unexpected keyword argument 'colour'"),
    ],
)
def test_what_cannot_be_built(change, message):
    with pytest.raises(SourceError, match=message):
        surgery.create("pspnet", **{**SMALL, **change})


@pytest.mark.parametrize("backbone", ["hf-hub:timm/resnet18", "local-dir:/tmp", "hf_hub:timm/resnet18"])
def test_backbones_are_those_of_the_registry(backbone):
    with pytest.raises(SourceError, match="the name of a model that timm lists"):
        surgery.pspnet.pspnet(backbone)
