import pytest
import timm
import torch
from torch import nn

import surgery
from surgery.methods.octave.maps import RegionNorm


def with_statistics(model):
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 1.5)
    return model.eval()


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "mobilenetv2_035"])
def test_norms_of_two_maps_are_folded(name):
    converted = surgery.convert(with_statistics(timm.create_model(name, num_classes=3)), "octave", input_size=64).eval()
    assert any(isinstance(m, RegionNorm) for m in converted.modules())
    folded = surgery.optimize_for_inference(converted, input_size=64)
    assert not any(isinstance(m, RegionNorm) for m in folded.modules())
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(folded(x), converted(x), rtol=1e-3, atol=1e-4)


def test_norms_of_each_map_are_folded():
    model = with_statistics(surgery.create("csnet", k=0.5))
    folded = surgery.optimize_for_inference(model, input_size=32)
    left = [name for name, m in folded.named_modules() if isinstance(m, nn.BatchNorm2d)]
    assert left == [f"dilated.{n}.norm" for n in range(3)]  # behind a concatenation
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(folded(x), model(x), rtol=1e-3, atol=1e-4)
