import pytest
import torch
import torch.nn.functional as F
from torch import nn

from surgery.graph import record
from surgery.graph.dataflow import non_negative


class Chain(nn.Module):
    def __init__(self, step):
        super().__init__()
        self.step = step

    def forward(self, x):
        return self.step(torch.relu(x))


@pytest.mark.parametrize(
    ("step", "proven"),
    [
        (lambda x: F.max_pool2d(x, 2), True),
        (lambda x: x + x, True),
        (lambda x: torch.cat([x, x * 2], 1), True),
        (lambda x: x * torch.sigmoid(x), True),
        (lambda x: x - 1, False),
        (lambda x: -1 * x, False),
        (lambda x: torch.add(x, x, alpha=-2), False),
        (lambda x: F.pad(x, (1, 1), value=-1.0), False),
        (lambda x: F.interpolate(x, scale_factor=2, mode="bicubic"), False),
        (lambda x: F.silu(x - 1), False),
    ],
)
def test_only_what_is_proven_counts_as_non_negative(step, proven):
    last = next(node for node in record(Chain(step), (3, 8, 8)) if node.op == "output").all_input_nodes[0]
    assert non_negative(record(Chain(step), (3, 8, 8)), last) is proven
