"""Layers that run in training only read channels, too."""

import numpy as np
from torch import nn

from surgery.graph import record
from surgery.graph.coupling import couple
from surgery.graph.training_heads import couple_all


class Auxiliary(nn.Module):
    """A head that only training has; ``fails`` makes training's forward fail."""

    def __init__(self, fails: bool = False) -> None:
        super().__init__()
        self.fails = fails
        self.body, self.head, self.auxiliary = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 5, 1), nn.Conv2d(8, 5, 1)

    def forward(self, x):
        x = self.body(x)
        if not self.training:
            return self.head(x)
        if self.fails:
            raise RuntimeError("no labels")
        return self.head(x), self.auxiliary(x)


def test_a_head_of_training_is_coupled_and_costs_nothing():
    model = Auxiliary()
    graph = record(model, (3, 16, 16))
    assert "auxiliary" not in couple(graph).layers
    coupling = couple_all(graph, model)
    assert coupling.layers["auxiliary"].macs == 0
    assert np.array_equal(coupling.layers["auxiliary"].reads, coupling.layers["body"].writes)
    assert coupling.layers["body"].macs == couple(graph).layers["body"].macs
    assert not model.training or model.train()
    keep = coupling.kept(coupling.removable()[:2])
    assert set(keep) == {("body", "weight"), ("body", "bias"), ("head", "weight"), ("auxiliary", "weight")}


def test_where_training_cannot_be_recorded_all_channels_stay():
    model = Auxiliary(fails=True)
    coupling = couple_all(record(model, (3, 16, 16)), model)
    assert not len(coupling.removable())
    reason = coupling.frozen[int(coupling.layers["body"].writes[0])]
    assert reason.startswith("auxiliary runs in training only, and the forward of training mode fails: RuntimeError")
