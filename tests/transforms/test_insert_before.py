import pytest
import torch
from torch import nn

from surgery.core.errors import SurgeryError
from surgery.methods.pix.layer import PiX
from surgery.planning.registry import discover
from surgery.transforms.insert_before import InsertBefore
from surgery.transforms.squeezed_conv import SqueezedConv2d

discover()


@torch.no_grad()
@pytest.mark.parametrize(
    ("layer", "options"),
    [
        ("pix", {}),
        ("pix", {"grouping": "strided"}),
        ("pix", {"fusion": "weighted"}),
        ("squeeze-conv", {}),
    ],
)
def test_computes_what_it_did_where_the_channels_of_a_subset_agree(layer, options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(8, 6, 3, padding=1)).eval()
    strided = options.get("grouping") == "strided"
    maps = torch.rand(2, 4, 5, 5) + 0.1
    x = torch.cat([maps, maps], 1) if strided else maps.repeat_interleave(2, 1)
    before = model(x)
    done = InsertBefore("0", layer, (8, 6), 4, options)
    done.apply(model)
    torch.testing.assert_close(model(x), before, rtol=1e-4, atol=1e-5)
    assert isinstance(model[0], SqueezedConv2d)
    assert model[0].weight.shape == (6, 4, 3, 3)
    assert not model[0].squeeze.training
    assert done.changed() == done.resized() == ("0",)


def test_the_squeeze_has_the_dtype_of_the_convolution():
    model = nn.Sequential(nn.Conv2d(8, 6, 3)).to(torch.float64)
    InsertBefore("0", "pix", (8, 6), 2, {"norm": "after"}).apply(model)
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    assert isinstance(model[0].squeeze[0], PiX)


def test_one_as_wide_keeps_the_filters():
    model = nn.Sequential(nn.Conv2d(8, 6, 3))
    weight = model[0].weight.detach().clone()
    InsertBefore("0", "squeeze-conv", (8, 6), 8).apply(model)
    assert model[0].weight.equal(weight)


def test_another_model_is_refused():
    model = nn.Sequential(nn.Conv2d(8, 6, 3))
    with pytest.raises(SurgeryError, match="'0' maps 8 → 6 channels; the plan says 4 → 6"):
        InsertBefore("0", "pix", (4, 6), 2).apply(model)
    assert type(model[0]) is nn.Conv2d
