"""The order of channels in which an exported network's subsets are strided."""

from typing import Any

import pytest
import timm
import torch
from torch import nn

import surgery
from surgery.deploy.export import arranged
from surgery.methods.pix.layer import PiX


def converted(name: str, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    model = surgery.convert(timm.create_model(name), match=False, **options).double().eval()
    for layer in pix_layers(model):
        nn.init.normal_(layer.weight)  # so that p lies on both sides of tau
    return model


def pix_layers(model: nn.Module) -> list[PiX]:
    return [module for module in model.modules() if isinstance(module, PiX)]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "strided", "layers"), [("resnet50", 15, 16), ("regnetx_002", 9, 10), ("mobilenetv2_100", 10, 10)]
)
def test_arranged_networks_compute_the_same(name: str, strided: int, layers: int):
    model = converted(name, **({} if "mobilenet" in name else {"zeta": 4}))
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        before = model(x)
        arranged(model, (3, 64, 64))
        after = model(x)
    assert len(pix_layers(model)) == layers
    assert sum(layer.grouping == "strided" for layer in pix_layers(model)) == strided
    torch.testing.assert_close(after, before, rtol=1e-9, atol=1e-9 * float(before.abs().max()))


@pytest.mark.filterwarnings("ignore")
def test_a_concatenated_stream_stays():
    model = converted("densenet121")
    arranged(model, (3, 64, 64))
    assert {layer.grouping for layer in pix_layers(model)} == {"contiguous"}


@pytest.mark.parametrize("options", [{"predictor_norm": True}, {"norm": "before"}, {"grouping": "strided"}])
def test_layers_with_channels_of_their_own_stay(options: dict):
    model = surgery.create("cifar_resnet", num_classes=4, layers=[1, 1, 1, 1], channels=[8, 8, 8, 8])
    model = surgery.convert(model, zeta=4, match=False, **options).eval()
    before = [layer.grouping for layer in pix_layers(model)]
    arranged(model, (3, 32, 32))
    assert [layer.grouping for layer in pix_layers(model)] == before


def test_half_floats_stay():
    model = surgery.create("cifar_resnet", num_classes=4, layers=[1, 1, 1, 1], channels=[8, 8, 8, 8]).bfloat16()
    model = surgery.convert(model, zeta=4, match=False).eval()
    arranged(model, (3, 32, 32))
    assert {layer.grouping for layer in pix_layers(model)} == {"contiguous"}
