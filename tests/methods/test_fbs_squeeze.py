"""The top channels as a squeeze, against a reference written with loops."""

import pytest
import timm
import torch
from torch import nn

import surgery
from surgery.methods.fbs_squeeze import TopChannels


def layer_of(channels=8, squeezed=3, stride=(1, 1)):
    layer = TopChannels(channels, squeezed, stride).double()
    with torch.no_grad():
        layer.saliency.weight.normal_(0, 0.5, generator=torch.Generator().manual_seed(0))
    return layer


def by_loops(layer, x):
    rows = []
    for image in x:
        pooled = torch.stack([channel.abs().mean() for channel in image])
        saliency = [max(0.0, 1 + v) for v in (layer.saliency.weight @ pooled + layer.saliency.bias).tolist()]
        level = sum(saliency) / len(saliency)
        winners = sorted(sorted(range(len(saliency)), key=lambda c: -saliency[c])[: layer.out_channels])
        strided = image[:, :: layer.stride[0], :: layer.stride[1]]
        rows.append(torch.stack([strided[c] * saliency[c] / level for c in winners]))
    return torch.stack(rows)


@pytest.mark.parametrize("stride", [(1, 1), (2, 2)])
def test_the_layer_is_its_definition(stride):
    x = torch.randn(4, 8, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    layer = layer_of(stride=stride)
    torch.testing.assert_close(layer(x), by_loops(layer, x), rtol=1e-12, atol=1e-12)


def kept_by(layer, x):
    with torch.no_grad():
        chosen = layer(x)
    return (chosen[:, :, None] * x[:, None] > 0).all((3, 4)).any(1)  # of inputs whose signs tell them apart


def test_half_precisions_choose_the_same_channels():
    conv = nn.Conv2d(32, 8, 1, bias=False)
    layer = TopChannels.from_conv(conv)
    with torch.no_grad():
        layer.saliency.weight.normal_(0, 0.01, generator=torch.Generator().manual_seed(0))
    x = torch.randn(16, 32, 6, 6, generator=torch.Generator().manual_seed(1))
    expected = kept_by(layer, x)
    assert expected.sum(1).tolist() == [8] * 16
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(kept_by(layer, x), expected)
    same = kept_by(layer.bfloat16(), x.bfloat16()) == expected
    assert same.float().mean() > 0.99


def test_vmap():
    layer, x = layer_of(), torch.randn(3, 8, 5, 6, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(torch.func.vmap(layer)(x[:, None])[:, 0], layer(x))


def test_fx_traces_it_and_it_is_called_as_a_convolution_is():
    layer, x = layer_of(stride=(2, 2)), torch.randn(3, 8, 5, 6, dtype=torch.float64)
    torch.testing.assert_close(torch.fx.symbolic_trace(layer)(x), layer(x))
    assert torch.equal(layer(input=x), layer(x))
    torch.testing.assert_close(layer(x[0]), layer(x[:1])[0])


def test_gradients():
    layer, x = layer_of(4, 2), torch.randn(2, 4, 3, 3, dtype=torch.float64, requires_grad=True)
    names = [name for name, _ in layer.named_parameters()]

    def run(x, *values):
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(run, (x, *layer.parameters()))


def test_it_starts_with_the_channels_that_the_convolution_weighed_most():
    conv = nn.Conv2d(6, 2, 1, bias=False)
    with torch.no_grad():
        conv.weight.fill_(0.1)
        conv.weight[:, [1, 4]] = 1.0
    x = torch.rand(2, 6, 3, 3)
    kept = TopChannels.from_conv(conv)(x)
    ratios = kept / x[:, [1, 4]]
    assert (ratios.amax((2, 3)) - ratios.amin((2, 3))).max() < 1e-5


def test_the_count_is_that_of_the_paper():
    with torch.device("meta"):
        model = timm.create_model("resnet50")
    cost = surgery.cost(surgery.plan(model, "fbs-squeeze").apply(model))
    assert cost.params == 37_162_472  # FACS: 37 M


def test_it_only_replaces():
    with pytest.raises(ValueError, match="mode"):
        surgery.plan(timm.create_model("resnet18"), "fbs-squeeze", mode="downscale", zeta=2)
