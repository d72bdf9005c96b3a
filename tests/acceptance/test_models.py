"""convert → forward, backward, save, load, equal logits, on real architectures with random weights."""

import warnings

import pytest
import timm
import torch
import torchvision

import surgery
from surgery.transforms.history import history

TIMM = [
    "resnet18",
    "resnet50",
    "resnetv2_50",
    "resnext50_32x4d",
    "wide_resnet50_2",
    "seresnet50",
    "ecaresnet50t",
    "res2net50_26w_4s",
    "resnest50d",
    "regnety_016",
    "densenet121",
    "dla60",
    "hrnet_w18_small",
    "cspresnet50",
    "mobilenetv2_100",
    "mobilenetv3_large_100",
    "efficientnet_b0",
    "mnasnet_100",
    "ghostnet_100",
    "inception_v3",
    pytest.param("vgg16_bn", marks=pytest.mark.slow),
    "convnext_tiny",
    "dpn68",
]
TORCHVISION = ["resnet50", "mobilenet_v2", pytest.param("vgg16_bn", marks=pytest.mark.slow), "densenet121", "googlenet"]
NOTHING_TO_CONVERT = {"resnet18", "regnety_016", "ghostnet_100", "vgg16_bn", "convnext_tiny"}


def round_trip(model, name, path):
    torch.manual_seed(0)
    if name in NOTHING_TO_CONVERT:
        with pytest.warns(UserWarning, match="there is nothing to convert"):
            converted = surgery.convert(model, zeta=4)
    else:
        converted = surgery.convert(model, zeta=4)
        assert history(converted)
        assert surgery.cost(converted).macs < surgery.cost(model).macs
    side = 224 if name.startswith("vgg") else 96
    output = converted.train()(torch.randn(2, 3, side, side))
    output = output if isinstance(output, torch.Tensor) else output[0]
    output.square().mean().backward()
    used = [p.grad for n, p in converted.named_parameters() if not n.startswith("aux")]
    assert all(grad is not None and grad.isfinite().all() for grad in used)
    surgery.save(converted, path)
    loaded = surgery.load(path)
    x = torch.randn(1, 3, side, side)
    with torch.no_grad():
        assert torch.equal(loaded(x), converted.eval()(x))


@pytest.mark.parametrize("name", TIMM)
def test_timm(name, tmp_path):
    round_trip(timm.create_model(name), name, tmp_path / "m.safetensors")


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision(name, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        model = torchvision.models.get_model(name, weights=None)
    round_trip(model, name, tmp_path / "m.safetensors")
