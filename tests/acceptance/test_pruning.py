"""l1 at 0.7 of the MACs → forward, backward, save, load, equal logits, ONNX, on real architectures.

The whole of it takes minutes: ``python -m pytest -m slow tests/acceptance/test_pruning.py``.
"""

import warnings

import pytest
import timm
import torch
import torchvision

import surgery
from surgery.core.errors import ConversionWarning
from surgery.transforms.history import history

SHARE = 0.7
TIMM = [
    "resnet18",
    "resnet50",
    "regnety_016",
    "resnest50d",
    "res2net50_26w_4s",
    "densenet121",
    "vgg16_bn",
    "mobilenetv2_100",
    "mobilenetv3_large_100",
    "efficientnet_b0",
    "ghostnet_100",
    "hrnet_w18_small",
    "convnext_tiny",
    "swin_tiny_patch4_window7_224",
    "vit_small_patch16_224",
    "mixer_s32_224",
]
TORCHVISION = ["googlenet", "shufflenet_v2_x1_0"]
SMALL = [
    "test_resnet",
    "test_byobnet",
    "test_efficientnet",
    "test_mambaout",
    "test_nfnet",
    "test_convnext",
    "test_vit",
    *(pytest.param(name, marks=pytest.mark.slow) for name in ("test_efficientnet_gn", "test_convnext3", "test_vit3")),
]
EXPORTED = ["test_vit"]
WHOLE_IMAGE = ("vgg16_bn", "swin_tiny_patch4_window7_224", "vit_small_patch16_224", "mixer_s32_224")


def of_torchvision(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return torchvision.models.get_model(name, weights=None)


def image_side(name, model):
    """Pixels of a side: few where the network takes images of any size."""
    if name.startswith("test_"):
        return model.pretrained_cfg["input_size"][-1]
    return 224 if name in WHOLE_IMAGE else 64


def pruned(model):
    """The model at SHARE of its MACs, to within 1 %, or what its plan says of that."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConversionWarning)
        converted = surgery.convert(model, "l1", macs=SHARE)
    assert history(converted)
    share = surgery.cost(converted).macs / surgery.cost(model).macs
    if abs(share - SHARE) > 0.01:
        plan = str(surgery.plan(model, "l1", macs=SHARE))
        assert f"cannot be met within 1 %: the nearest share is {share:.3f}" in plan
    return converted


def check_gradients(converted, side):
    torch.manual_seed(0)
    output = converted.train()(torch.randn(2, 3, side, side))
    output = output if isinstance(output, torch.Tensor) else output[0]
    output.square().mean().backward()
    used = {name: p.grad for name, p in converted.named_parameters() if not name.startswith("aux")}
    assert [name for name, grad in used.items() if grad is None or not grad.isfinite().all()] == []


def check_file(converted, side, path):
    surgery.save(converted, path)
    loaded = surgery.load(path)
    images = torch.randn(2, 3, side, side)
    with torch.no_grad():
        assert torch.equal(loaded(images), converted.eval()(images))


def check_onnx(converted, side, path):
    onnxruntime = pytest.importorskip("onnxruntime")
    surgery.export(converted, path, input_size=side, dynamic_size=False, progress=False)
    session = onnxruntime.InferenceSession(str(path))
    name = session.get_inputs()[0].name
    for count in (1, 3):
        images = torch.randn(count, 3, side, side)
        with torch.no_grad():
            expected = converted.eval()(images)
        logits = torch.from_numpy(session.run(None, {name: images.numpy()})[0])
        assert (logits - expected).abs().max() <= 1e-3 * max(1e-3, expected.abs().max())


def check_all(model, side, folder, onnx):
    torch.manual_seed(0)
    converted = pruned(model)
    check_gradients(converted, side)
    check_file(converted, side, folder / "m.safetensors")
    if onnx:
        check_onnx(converted, side, folder / "m.onnx")


@pytest.mark.slow
@pytest.mark.parametrize("name", TIMM)
def test_timm(name, tmp_path):
    model = timm.create_model(name)
    check_all(model, image_side(name, model), tmp_path, onnx=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision(name, tmp_path):
    check_all(of_torchvision(name), image_side(name, None), tmp_path, onnx=True)


@pytest.mark.parametrize("name", SMALL)
def test_small_networks_of_the_same_families(name, tmp_path):
    model = timm.create_model(name, num_classes=10)
    check_all(model, image_side(name, model), tmp_path, onnx=name in EXPORTED)
