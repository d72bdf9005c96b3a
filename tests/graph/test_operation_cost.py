import math

import pytest
import torch
import torchvision
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import surgery
from surgery.graph import record
from surgery.graph.operation_cost import Uncounted, graph_cost, uncounted

C, SIDE = 4, 6
TOKENS = SIDE * SIDE


class Net(nn.Module):
    """A convolution and an operation of the caller's behind it."""

    def __init__(self, operation):
        super().__init__()
        self.conv = nn.Conv2d(3, C, 1)
        self.operation = operation

    def forward(self, x):
        return self.operation(self.conv(x))


def added(operation):
    """(cost of the operation alone, what is uncounted)."""
    graph, plain = record(Net(operation), (3, SIDE, SIDE)), record(Net(nn.Identity()), (3, SIDE, SIDE))
    spent, base = graph_cost(graph), graph_cost(plain)
    return (spent.macs - base.macs, spent.flops - base.flops, spent.memory - base.memory), uncounted(graph)


def tokens(x):
    return x.flatten(2).transpose(1, 2)


def test_operations_without_a_count_are_listed():
    def operation(x):
        x = torch.fft.irfft2(torch.fft.rfft2(x))
        return torch.fft.irfft2(torch.fft.rfft2(x)) + torch.cumsum(x, 1)

    _, missing = added(operation)
    half = C * SIDE * (SIDE // 2 + 1)
    assert missing == (
        Uncounted("fft_rfft2", 2, 2 * half),
        Uncounted("fft_irfft2", 2, 2 * C * TOKENS),
        Uncounted("cumsum", 1, C * TOKENS),
    )


@pytest.mark.parametrize(
    "operation",
    [
        lambda x: x.flatten(1),
        lambda x: x.movedim(1, 3).mT.reshape(1, -1),
        lambda x: x[:, :2],
        lambda x: x.chunk(2, 1)[0],
        lambda x: x.contiguous(),
        nn.Dropout(0.5),
    ],
)
def test_views_cost_nothing_and_are_not_listed(operation):
    assert added(operation) == ((0, 0, 0), ())


def test_what_a_tensor_indexes_is_copied():
    assert added(lambda x: x[:, torch.tensor([0, 2, 1])])[0] == (0, 0, 3 * TOKENS)


@pytest.mark.parametrize(
    "operation",
    [
        lambda x: nn.functional.scaled_dot_product_attention(tokens(x), tokens(x)[:, :5], tokens(x)[:, :5]),
        lambda x: nn.functional.scaled_dot_product_attention(
            query=tokens(x), key=tokens(x)[:, :5], value=tokens(x)[:, :5]
        ),
    ],
)
def test_both_products_of_an_attention_are_flops(operation):
    (macs, flops, _), missing = added(operation)
    assert (macs, flops, missing) == (0, 2 * TOKENS * 5 * C, ())


@pytest.mark.parametrize(
    ("operation", "flops"),
    [
        (lambda x: tokens(x) @ x.flatten(2), TOKENS * C * TOKENS),
        (lambda x: torch.addmm(x.flatten(1)[:, :TOKENS], x[0, :, 0, :1].T, x.flatten(2)[0]), C * TOKENS),
        (lambda x: torch.einsum("nchw, ndhw -> ncd", x, x), C * C * TOKENS),
        (lambda x: torch.einsum("nchw,c->nhw", x, x[0, :, 0, 0]), C * TOKENS),
    ],
)
def test_products_of_computed_matrices_are_flops(operation, flops):
    (macs, counted, _), missing = added(operation)
    assert (macs, counted, missing) == (0, flops, ())


@pytest.mark.parametrize("equation", ["n...->...n", "nchw,nchw,nchw->n"])
def test_an_einsum_that_is_not_counted_is_listed(equation):
    operands = equation.count(",") + 1
    _, (missing,) = added(lambda x: torch.einsum(equation, *[x] * operands))
    assert str(missing) == "einsum ×1"


def test_layers_of_unknown_kind_are_listed_by_their_class():
    class Lstm(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = nn.LSTM(C, 5)

        def forward(self, x):
            return self.lstm(tokens(x))[0]

    _, missing = added(Lstm())
    assert missing == (Uncounted("LSTM", 1, TOKENS * 5 + 2 * TOKENS * 5),)


def test_a_pooling_that_gives_two_tensors_is_counted():
    (_, flops, memory), missing = added(lambda x: x.max(1).values)
    assert (flops, memory, missing) == (C * TOKENS, 2 * TOKENS, ())


def test_a_tensor_of_unknown_origin_is_listed():
    def operation(x):
        return x + torch.from_numpy(torch.ones(1, C, 1, 1).numpy())

    names = [missing.name for missing in added(operation)[1]]
    assert "unrecorded call" in names


def test_a_plain_convnet_has_nothing_uncounted():
    with torch.device("meta"):
        model = torchvision.models.resnet18(weights=None)
    assert uncounted(record(model)) == ()
    assert "\nnot counted" not in str(surgery.cost(model))


def test_cost_says_what_is_not_counted():
    cost = surgery.cost(Net(lambda x: torch.fft.rfft2(torch.cumsum(x, 1).cumsum(2))), (3, SIDE, SIDE))
    assert "\nnot counted: cumsum ×2, fft_rfft2 ×1\n" in str(cost)
    assert "not counted: cumsum ×2, fft_rfft2 ×1" in cost._repr_html_()
    assert "products of attention are FLOPs" in str(cost)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("ssdlite320_mobilenet_v3_large", {}),
        ("fasterrcnn_mobilenet_v3_large_320_fpn", {"min_size": 64, "max_size": 64}),
        ("retinanet_resnet50_fpn", {"min_size": 64, "max_size": 64}),
    ],
)
def test_detectors_count_their_convolutions_at_every_scale(name, size):
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None, weights_backbone=None, num_classes=3, **size).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model([torch.zeros(3, 64, 64)])
    cost = surgery.cost(model, (3, 64, 64))
    assert cost.macs == counter.get_total_flops() // 2
    assert {"topk", "exp"} <= {missing.name for missing in cost.uncounted}
    assert math.prod(cost.input_size) == 3 * 64 * 64
