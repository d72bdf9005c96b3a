import copy

import pytest
import torch
from timm.layers import ScaledStdConv2d, StdConv2d
from torch import nn

from surgery.methods.pix.layer import PiX
from surgery.methods.pix.ops import reference
from tests.methods.pix.ops.loop_pix import loop_pix
from tests.small_models import with_statistics


def test_takes_over_the_parameters_of_a_convolution():
    conv = nn.Conv2d(8, 2, 1, stride=2)
    layer = PiX.from_conv(conv)
    assert layer.weight is conv.weight
    assert layer.bias is conv.bias
    assert set(layer.state_dict()) == set(conv.state_dict())
    x = torch.randn(2, 8, 5, 4)
    expected = loop_pix(x, conv.weight, conv.bias, stride=(2, 2)).float()
    torch.testing.assert_close(layer(x), expected)
    assert layer(x).shape == conv(x).shape


@pytest.mark.parametrize("kind", [StdConv2d, ScaledStdConv2d])
def test_weight_standardisation_is_what_the_convolution_does_on_the_descriptor(kind):
    conv = kind(12, 3, 1, bias=True)
    layer = PiX.from_conv(conv)
    x = torch.randn(2, 12, 6, 6)
    p = torch.sigmoid(conv(x.mean((2, 3), keepdim=True)))
    expected = torch.where(p <= 0.5, p * x.unflatten(1, (3, 4)).amax(2), p * x.unflatten(1, (3, 4)).mean(2))
    torch.testing.assert_close(layer(x), expected)
    assert set(layer.state_dict()) == set(conv.state_dict())


def test_predictor_norm_and_input_norm():
    x = torch.randn(4, 8, 3, 3)
    layer = PiX(8, 2, predictor_norm=True, input_norm=True)
    y = layer(x)
    seen = layer.input_norm(x)
    logits = layer.predictor_norm(nn.functional.conv2d(seen.mean((2, 3), keepdim=True), layer.weight, layer.bias))
    p = torch.sigmoid(logits)
    groups = seen.unflatten(1, (2, 4))
    torch.testing.assert_close(y, torch.where(p <= 0.5, p * groups.amax(2), p * groups.mean(2)))


def test_compiles_without_a_graph_break_forward_and_backward():
    layer = PiX(8, 2)
    x = torch.randn(2, 8, 4, 4, requires_grad=True)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=True)
    for size in (4, 6):
        x = torch.randn(3, 8, size, size + 1, requires_grad=True)
        y = compiled(x)
        torch.testing.assert_close(y, layer(x))
        y.sum().backward()
        assert x.grad is not None


def test_exports_with_dynamic_batch_and_size():
    layer = PiX(8, 3).eval()
    dynamic = {"x": {0: torch.export.Dim("n"), 2: torch.export.Dim("h"), 3: torch.export.Dim("w")}}
    exported = torch.export.export(layer, (torch.randn(2, 8, 6, 5),), dynamic_shapes=dynamic).module()
    x = torch.randn(3, 8, 4, 9)
    torch.testing.assert_close(exported(x), layer(x))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"fusion": "weigthed"}, "did you mean 'weighted'"),
        ({"operator": "sum"}, "'max\\+avg', 'max', 'avg', 'min'"),
        ({"activation": "relu"}, "'sigmoid', 'tanh'"),
        ({"tau": 1.5}, "tau=1.5"),
        ({"fusion": "weighted", "operator": "max"}, "nothing to mix"),
    ],
)
def test_bad_choices_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        PiX(8, 2, **arguments)


def test_refuses_to_widen():
    with pytest.raises(ValueError, match="out_channels <= in_channels"):
        PiX(2, 4)


def test_supplement_cost_example():
    """PiX supplement E, its sums corrected (pooling is 300): 573 and, weighted, 798."""
    assert PiX(12, 3).cost((1, 12, 5, 5), (1, 3, 5, 5)).flops == 573
    assert PiX(12, 3, fusion="weighted").cost((1, 12, 5, 5), (1, 3, 5, 5)).flops == 798


@pytest.mark.parametrize(("side", "flops"), [(112, 6.69), (56, 1.87), (28, 0.67)])
def test_supplement_table_1(side, flops):
    shape = (1, 512, side, side)
    assert PiX(512, 512).cost(shape, shape).flops / 1e6 == pytest.approx(flops, abs=0.005)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("options", [{}, {"tau": 0.8}, {"activation": "tanh"}, {"tau": 1.0}, {"operator": "max"}])
def test_start_gives_every_image_the_mean_and_hardly_moves_p(bias, options):
    torch.manual_seed(0)
    layer = PiX(12, 3, bias=bias, **options)
    observed = torch.cat([layer.observe(torch.rand(8, 12, 5, 5) + i / 4) for i in range(5)])
    assert observed.shape == (40, 12)
    directions = layer.weight.detach().flatten(1).clone()
    layer.start(observed)
    logits = observed @ layer.weight.detach().double().flatten(1).T + (layer.bias.detach() if bias else 0)
    p = reference.activate(logits, layer.activation)
    assert float(p.std(0, correction=0).max()) < 0.1
    if not {"operator"} & set(options) and layer.tau < 1:
        assert bool((p > layer.tau).all())
    if bias:
        assert float(torch.cosine_similarity(directions, layer.weight.flatten(1)).min()) > 0.999
    state = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    layer.start(observed)
    assert all(torch.equal(tensor, state[name]) for name, tensor in layer.state_dict().items())


def test_start_leaves_what_it_cannot_set():
    layer = PiX(8, 2, predictor_norm=True)
    assert layer.observe(torch.rand(2, 8, 3, 3)) is None
    layer = PiX(8, 2)
    before = layer.weight.clone()
    layer.start(torch.zeros(3, 8, dtype=torch.float64))
    assert torch.equal(layer.weight, before)


@pytest.mark.parametrize("shape", [(1, 7, 8, 8), (1, 65, 8, 8), (64, 8, 8), (1, 64, 8)], ids=str)
@pytest.mark.parametrize("gradients", [True, False])
def test_a_map_of_other_channels_or_rank_is_refused(shape, gradients):
    layer = PiX(64, 16)
    with torch.set_grad_enabled(gradients), pytest.raises(ValueError, match="a PiX site reads"):
        layer(torch.zeros(shape))


def test_a_predictor_with_a_norm_refuses_other_channels_too():
    with pytest.raises((ValueError, RuntimeError), match="channels|PiX"):
        PiX(64, 16, predictor_norm=True)(torch.zeros(2, 7, 8, 8))


@pytest.mark.parametrize("stride", [(0, 0), (1,), (2, 2, 2), 2, (-1, 1), (1.0, 1.0)], ids=str)
def test_a_stride_that_cannot_be_is_named(stride):
    with pytest.raises(ValueError, match=r"stride=.*: two whole numbers >= 1 are needed"):
        PiX(8, 4, stride=stride)


@pytest.mark.parametrize("widths", [(8, 4.0), (8, 9), (8, 0), (True, 1)], ids=str)
def test_widths_that_cannot_be_are_named(widths):
    with pytest.raises(ValueError, match="in_channels=.*, out_channels=.* are needed"):
        PiX(*widths)


@pytest.mark.parametrize("options", [{"predictor_norm": True}, {"standardize": (1e-5, 0.5)}])
@torch.no_grad()
def test_folded_for_inference(options):
    layer = with_statistics(PiX(8, 4, **options)).eval()
    state = copy.deepcopy(layer.state_dict())
    folded, x = layer.folded(), torch.randn(2, 8, 5, 5)
    torch.testing.assert_close(folded(x), layer(x))
    assert folded.predictor_norm is None
    assert folded.standardize is None
    assert folded.folded() is None
    assert all(torch.equal(value, state[name]) for name, value in layer.state_dict().items())


@torch.no_grad()
def test_lowered_for_exporters():
    layer = PiX(8, 4, standardize=(1e-5, 0.5)).eval()
    lowered, x = layer.lowered(), torch.randn(2, 8, 5, 5)
    torch.testing.assert_close(lowered(x), layer(x))
    assert not any(isinstance(module, PiX) for module in lowered.modules())
