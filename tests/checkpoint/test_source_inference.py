import pytest
import timm
import torch
import torchvision
from timm.layers import convert_sync_batchnorm
from torch import nn

import surgery

SEGMENTATION = torchvision.models.segmentation


def saved_and_loaded(model, path):
    surgery.save(model, path)
    return surgery.load(path)


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("test_resnet", {"features_only": True}),
        ("test_resnet", {"features_only": True, "out_indices": (1, 3), "in_chans": 1}),
        ("resnet26", {"features_only": True, "out_indices": (3, 4), "output_stride": 8}),
        ("test_efficientnet", {"features_only": True, "feature_cls": "hook"}),
        ("test_efficientnet", {"features_only": True, "out_indices": (2,)}),
        ("test_vit", {"features_only": True, "out_indices": (2,), "img_size": 96}),
        ("test_resnet", {"global_pool": "", "num_classes": 0}),
        ("test_convnext", {"global_pool": "max", "num_classes": 2}),
        ("test_vit", {"img_size": 128, "global_pool": "avg", "num_classes": 2}),
        ("test_vit", {"img_size": (96, 64), "in_chans": 1, "num_classes": 2}),
    ],
)
def test_timm_s_attributes_tell(tmp_path, name, kwargs):
    torch.manual_seed(0)
    model = timm.create_model(name, **kwargs).eval()
    loaded = saved_and_loaded(model, tmp_path / "m").eval()
    assert type(loaded) is type(model)
    size = kwargs.get("img_size", 160)
    images = torch.randn(1, kwargs.get("in_chans", 3), *((size, size) if isinstance(size, int) else size))
    with torch.no_grad():
        ours, theirs = loaded(images), model(images)
    pairs = zip(ours, theirs, strict=True) if isinstance(ours, list | tuple) else [(ours, theirs)]
    assert all(torch.equal(one, two) for one, two in pairs)


def test_what_a_forward_caches_is_no_difference(tmp_path):
    model = timm.create_model("convit_tiny", num_classes=2).eval()
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        expected = model(images)
        assert torch.equal(saved_and_loaded(model, tmp_path / "m")(images), expected)


@pytest.mark.parametrize(
    ("convert", "make", "norm"),
    [
        (nn.SyncBatchNorm.convert_sync_batchnorm, lambda: timm.create_model("resnet18", num_classes=2), nn.BatchNorm2d),
        (
            nn.SyncBatchNorm.convert_sync_batchnorm,
            lambda: surgery.convert(timm.create_model("resnet26", num_classes=2), zeta=4),
            nn.BatchNorm2d,
        ),
        (
            convert_sync_batchnorm,
            lambda: timm.create_model("test_efficientnet", num_classes=2),
            timm.layers.BatchNormAct2d,
        ),
    ],
)
def test_synchronised_norms_come_back_plain(tmp_path, convert, make, norm):
    model = convert(make()).eval()
    loaded = saved_and_loaded(model, tmp_path / "m")
    assert type(loaded.bn1) is norm
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(loaded(images), model(images))


@pytest.mark.parametrize(
    "make",
    [
        lambda: torchvision.models.mnasnet0_5(num_classes=3),
        lambda: torchvision.models.squeezenet1_1(num_classes=3),
        lambda: SEGMENTATION.lraspp_mobilenet_v3_large(num_classes=3, weights_backbone=None),
        lambda: SEGMENTATION.fcn_resnet50(num_classes=3, weights_backbone=None, aux_loss=True),
    ],
)
def test_torchvision_s(tmp_path, make):
    model = make().eval()
    loaded = saved_and_loaded(model, tmp_path / "m")
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in model.state_dict().items())


def test_a_converted_mnasnet(tmp_path):
    model = surgery.convert(torchvision.models.mnasnet0_5(num_classes=3), zeta=4).eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(saved_and_loaded(model, tmp_path / "m")(images), model(images))
