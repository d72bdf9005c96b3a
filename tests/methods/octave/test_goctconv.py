import math

import pytest
import torch
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st
from torch import nn

from surgery.methods.octave import ConvShape, GOctConv, Scales
from surgery.planning.cost import cost
from tests.methods.octave import loops


def maps_of(channels, scales, size, batch=1, dtype=torch.float64):
    least = min(scales)
    sides = [[-(-side >> (scale - least)) for side in size] for scale in scales]
    return [torch.randn(batch, n, *side, dtype=dtype) for n, side in zip(channels, sides, strict=True)]


def as_list(maps):
    return [maps] if isinstance(maps, torch.Tensor) else maps


def compared(layer, maps):
    """The layer's outputs and those of the loops, pairwise."""
    scales, shape = layer.scales, layer.shape
    outputs = as_list(layer(maps))
    expected = loops.goctconv(
        [x[0].numpy() for x in maps],
        layer.weight.detach().numpy(),
        scales.in_scales,
        scales.out_channels,
        scales.out_scales,
        links=scales.links,
        pooling=shape.pooling,
        upsampling=shape.upsampling,
        dilation=shape.dilation,
        stride=shape.stride,
    )
    return [(y[0].detach(), torch.from_numpy(e)) for y, e in zip(outputs, expected, strict=True)]


@pytest.mark.parametrize("kernel,stride,dilation,groups", [(1, 1, 1, 1), (3, 1, 1, 2), (3, 2, 1, 1), (3, 1, 2, 4)])
def test_one_scale_is_the_plain_convolution_bit_for_bit(kernel, stride, dilation, groups):
    padding = dilation * (kernel // 2)
    plain = nn.Conv2d(8, 12, kernel, stride, padding, dilation, groups)
    shape = ConvShape((kernel, kernel), stride, (padding, padding), dilation, groups, bias=True)
    layer = GOctConv(Scales((8,), (12,)), shape)
    layer.load_state_dict(plain.state_dict())
    x = torch.randn(2, 8, 9, 11)
    assert torch.equal(layer(x), plain(x))
    assert torch.equal(layer([x]), plain(x))


@settings(max_examples=25, deadline=None)
@drawn(
    size=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    channels=st.tuples(*[st.integers(1, 3)] * 4),
    kernel=st.sampled_from([1, 3]),
    pooling=st.sampled_from(["max", "average"]),
    upsampling=st.sampled_from(["bilinear", "nearest"]),
    stride=st.sampled_from([1, 2]),
)
def test_vanilla_is_octconv_by_loops(size, channels, kernel, pooling, upsampling, stride):
    torch.manual_seed(0)
    layer = GOctConv.vanilla(
        channels[:2], channels[2:], kernel, stride=stride, pooling=pooling, upsampling=upsampling
    ).double()
    for y, expected in compared(layer, maps_of(channels[:2], (0, 1), size)):
        torch.testing.assert_close(y, expected, rtol=0, atol=1e-10)


@settings(max_examples=25, deadline=None)
@drawn(data=st.data())
def test_any_scales_and_links(data):
    torch.manual_seed(0)
    in_scales = tuple(data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=3, unique=True)))
    out_scales = tuple(data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=3, unique=True)))
    pairs = [(i, j) for j in range(len(out_scales)) for i in range(len(in_scales))]
    links = [pair for pair in pairs if pair[0] == pair[1] % len(in_scales) or data.draw(st.booleans())]
    scales = Scales(
        tuple(range(1, 1 + len(in_scales))), tuple(range(2, 2 + len(out_scales))), in_scales, out_scales, tuple(links)
    )
    layer = GOctConv(scales, ConvShape((3, 3), dilation=data.draw(st.integers(1, 2)))).double()
    maps = maps_of(scales.in_channels, in_scales, (5, 6))
    for y, expected in compared(layer, maps):
        torch.testing.assert_close(y, expected, rtol=0, atol=1e-10)


def test_simplified_is_depthwise_within_each_scale():
    layer = GOctConv.simplified((3, 5)).double()
    maps = maps_of((3, 5), (0, 1), (6, 4))
    depthwise = [nn.Conv2d(n, n, 3, padding=1, groups=n, bias=False).double() for n in (3, 5)]
    for conv, weight in zip(depthwise, layer.weight.split([3, 5]), strict=True):
        conv.weight.data.copy_(weight)
    for y, conv, x in zip(layer(maps), depthwise, maps, strict=True):
        torch.testing.assert_close(y, conv(x))


def test_grouped_convolution_over_separate_maps_is_the_one_over_all_channels():
    """Four groups of six channels, three on the fine map: as the plain convolution would have them."""
    layer = GOctConv(Scales((18, 6), (12, 4), links=((0, 0), (1, 1))), ConvShape((1, 1), groups=4))
    plain = nn.Conv2d(24, 16, 1, groups=4, bias=False)
    assert layer.weight.shape == plain.weight.shape
    plain.weight.data.copy_(layer.weight)
    fine, coarse = torch.randn(1, 18, 4, 4), torch.randn(1, 6, 2, 2)
    same_size = torch.cat([fine, coarse.repeat_interleave(2, 2).repeat_interleave(2, 3)], 1)
    outputs = layer([fine, coarse])
    torch.testing.assert_close(outputs[0], plain(same_size)[:, :12])
    torch.testing.assert_close(outputs[1], plain(same_size)[:, 12:, ::2, ::2])


def test_bias_is_added_once_to_every_output():
    for scales in (Scales((2, 3), (4, 5)), Scales((2, 3), (4, 5), (1, 2), (0, 3)), Scales((2,), (3, 3), (1,), (0, 2))):
        layer = GOctConv(scales, ConvShape((1, 1), bias=True)).double()
        nn.init.zeros_(layer.weight)
        outputs = layer(maps_of(scales.in_channels, scales.in_scales, (8, 8)))
        for j, y in enumerate(outputs):
            bias = layer.bias[slice(*scales.rows(j))]
            torch.testing.assert_close(y, bias[None, :, None, None].expand_as(y))


def test_gradients():
    layer = GOctConv.vanilla((2, 3), (3, 2), bias=True).double()
    maps = [x.requires_grad_() for x in maps_of((2, 3), (0, 1), (3, 5))]

    def outputs(weight, bias, *inputs):
        return tuple(torch.func.functional_call(layer, {"weight": weight, "bias": bias}, (list(inputs),)))

    assert torch.autograd.gradcheck(outputs, (layer.weight, layer.bias, *maps))


def test_strided_convolution_keeps_what_the_plain_one_computes_on_the_fine_map():
    layer = GOctConv(Scales((4, 2), (6,), links=((0, 0),)), ConvShape((3, 3), stride=2, striding="conv"))
    x, coarse = torch.randn(1, 4, 9, 7), torch.randn(1, 2, 5, 4)
    expected = nn.functional.conv2d(x, layer.weight[:, :4], stride=2, padding=1)
    torch.testing.assert_close(layer([x, coarse]), expected)


def test_strided_convolution_of_both_maps_has_the_sizes_of_its_outputs():
    for striding in ("pool", "conv"):
        layer = GOctConv.vanilla((4, 2), (6, 3), stride=2, striding=striding)
        outputs = layer([torch.randn(1, 4, 9, 7), torch.randn(1, 2, 5, 4)])
        assert [tuple(y.shape) for y in outputs] == [(1, 6, 5, 4), (1, 3, 3, 2)]


class Fed(nn.Module):
    """A gOctConv of an image, whose maps are made by pooling it."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        parts = x.split(self.layer.scales.in_channels, 1)
        maps = [
            nn.functional.avg_pool2d(part, 1 << scale)
            for part, scale in zip(parts, self.layer.scales.in_scales, strict=True)
        ]
        return self.layer(maps)


@pytest.mark.parametrize("alpha", [0.25, 0.5, 0.75])
def test_macs_of_vanilla_are_those_of_equation_4(alpha):
    height, width, kernel, channels = 16, 12, 3, 8
    low = int(alpha * channels)
    high = channels - low
    layer = GOctConv.vanilla((high, low), (high, low), kernel)
    plane = height * width
    four = plane * high * high + plane * high * low // 4 + plane * low * high // 4 + plane * low * low // 4
    assert cost(Fed(layer), (channels, height, width)).macs == four * kernel**2


def test_macs_of_one_scale_and_of_simplified_are_those_of_equations_3_and_6():
    assert cost(Fed(GOctConv(Scales((8,), (8,)))), (8, 16, 12)).macs == 16 * 12 * 8 * 8 * 9
    simplified = GOctConv.simplified((6, 2))
    assert cost(Fed(simplified), (8, 16, 12)).macs == (16 * 12 * 6 + 16 * 12 * 2 // 4) * 9


def test_cross_stage_costs_each_link_at_its_coarser_resolution():
    layer = GOctConv.cross_stage((4, 4, 8), (2, 3, 5))
    planes = [16 * 16, 8 * 8, 4 * 4]
    expected = sum(
        planes[max(i, j)] * layer.scales.in_channels[i] * layer.scales.out_channels[j]
        for i in range(3)
        for j in range(3)
    )
    assert cost(Fed(layer), (16, 16, 16)).macs == expected


def test_as_few_convolutions_as_scales_allow():
    assert len(GOctConv.vanilla((4, 4), (4, 4)).branches) == 3
    assert len(GOctConv.cross_stage((4, 4, 4), (4, 4, 4)).branches) == 5
    assert len(GOctConv.cross_stage((4, 4, 4), (4,)).branches) == 3


def test_autocast_and_layouts():
    layer = GOctConv.vanilla((4, 4), (4, 4))
    maps = maps_of((4, 4), (0, 1), (6, 6), batch=2, dtype=torch.float32)
    plain = layer(maps)
    with torch.autocast("cpu", torch.bfloat16):
        half = layer(maps)
    last = layer.to(memory_format=torch.channels_last)([x.to(memory_format=torch.channels_last) for x in maps])
    for one, two, three in zip(plain, half, last, strict=True):
        torch.testing.assert_close(two.float(), one, rtol=0.1, atol=0.1)
        torch.testing.assert_close(three, one)


def test_compiles_and_exports():
    model = Fed(GOctConv.vanilla((4, 4), (2, 6))).eval()
    x = torch.randn(1, 8, 8, 8)
    exported = torch.export.export(model, (x,)).module()(x)
    for one, two in zip(model(x), exported, strict=True):
        torch.testing.assert_close(one, two)


@pytest.mark.parametrize(
    "arguments,message",
    [
        ({"in_channels": (), "out_channels": (4,)}, r"in_channels=\[\]: whole numbers >= 1"),
        ({"in_channels": (0, 4), "out_channels": (4,)}, r"in_channels=\[0, 4\]"),
        ({"in_channels": (2, 2), "out_channels": (4,), "in_scales": (0, 0)}, r"in_scales=\[0, 0\]: 2 different scales"),
        ({"in_channels": (2, 2), "out_channels": (4,), "in_scales": (0,)}, r"in_scales=\[0\]"),
        ({"in_channels": (2,), "out_channels": (4,), "links": ((1, 0),)}, r"links has \(1, 0\)"),
        ({"in_channels": (2,), "out_channels": (4, 4), "links": ((0, 0),)}, "output 1 is computed from no input"),
    ],
)
def test_impossible_scales(arguments, message):
    with pytest.raises(ValueError, match=message):
        Scales(**arguments)


@pytest.mark.parametrize(
    "shape,message",
    [
        ({"kernel": (2, 2)}, "even kernel needs a padding"),
        ({"kernel": (3, 3), "padding": (0, 0)}, r"padding=\(0, 0\): between several resolutions"),
        ({"groups": 3}, "3 groups cannot be formed"),
        ({"pooling": "sum"}, "pooling='sum'"),
        ({"stride": 0}, "stride=0"),
    ],
)
def test_impossible_shapes(shape, message):
    with pytest.raises(ValueError, match=message):
        GOctConv(Scales((4, 4), (4, 4)), ConvShape(**shape))


def test_maps_that_do_not_belong_together():
    layer = GOctConv.vanilla((4, 2), (4, 2))
    with pytest.raises(ValueError, match=r"maps of \[4\] channels: 2 of \[4, 2\]"):
        layer(torch.randn(1, 4, 8, 8))
    with pytest.raises(ValueError, match="a map of scale 1 is 3×4: beside 8×8 of scale 0 it must be 4×4"):
        layer([torch.randn(1, 4, 8, 8), torch.randn(1, 2, 3, 4)])


def test_initialised_as_a_plain_convolution():
    layer = GOctConv.vanilla((32, 32), (64, 64))
    assert layer.weight.abs().max() <= 1 / math.sqrt(64 * 9) * 1.0001
