import pytest
import timm
import torch
import torchvision
from torch import nn

from surgery.core.errors import SurgeryError
from surgery.transforms.pooled_head import PooledHead


@pytest.mark.parametrize(
    "make", [lambda: timm.create_model("vgg11", num_classes=3), lambda: torchvision.models.vgg11(num_classes=3)]
)
def test_timm_s_and_torchvision_s_vgg(make):
    with torch.device("meta"):
        model = make().to(torch.float16)
        before = sum(p.numel() for p in model.parameters())
        PooledHead().apply(model)
        assert sum(p.numel() for p in model.parameters()) < before / 10
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    assert [(linear.in_features, linear.out_features, linear.weight.dtype) for linear in linears] == [
        (512, 3, torch.float16)
    ]


@pytest.mark.parametrize("model", [nn.Sequential(nn.Conv2d(3, 3, 1)), timm.create_model("test_resnet")], ids=["", "r"])
def test_other_networks_have_no_such_head(model):
    with pytest.raises(SurgeryError, match="head='pool' is for VGG-like models; .* has no such head"):
        PooledHead().apply(model)


def test_nothing_of_it_can_be_fitted():
    assert PooledHead().changed() == PooledHead().resized() == PooledHead().removed() == ()
