import pytest
import torch
from torch import nn

from surgery.core.errors import SurgeryError
from surgery.methods.pix.layer import PiX
from surgery.transforms.replace import Replace


def test_the_layer_owns_the_convolution_s_parameters():
    model = nn.Sequential(nn.Conv2d(16, 4, 1, bias=False)).eval()
    weight = model[0].weight
    Replace("0", "pix", (16, 4), {"tau": 0.25}).apply(model)
    assert isinstance(model[0], PiX)
    assert model[0].weight is weight
    assert model[0].tau == 0.25
    assert not model[0].training
    assert model(torch.randn(2, 16, 3, 3)).shape == (2, 4, 3, 3)


def test_says_what_it_changes():
    done = Replace("a.conv1", "pix", (16, 4))
    assert done.changed() == ("a.conv1",)
    assert done.removed() == done.resized() == ()


@pytest.mark.parametrize(
    ("name", "channels", "message"),
    [
        ("1", (16, 4), "Sequential has no module '1'"),
        ("0", (16, 8), "'0' maps 16 → 4 channels; the plan says 16 → 8"),
        ("0", (8, 4), "the plan says 8 → 4"),
    ],
)
def test_another_model_is_refused(name, channels, message):
    model = nn.Sequential(nn.Conv2d(16, 4, 1))
    with pytest.raises(SurgeryError, match=message):
        Replace(name, "pix", channels).apply(model)
    assert type(model[0]) is nn.Conv2d


def test_another_kind_of_module_is_refused():
    with pytest.raises(SurgeryError, match="'0' is a Linear; the plan was made for a Conv2d"):
        Replace("0", "pix", (16, 4)).apply(nn.Sequential(nn.Linear(16, 4)))
