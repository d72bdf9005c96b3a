"""What a channel is worth by what the others cannot make up for."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from surgery.graph import record
from surgery.graph.coupling import couple
from surgery.methods.planners.pruning.reconstruction import STAYS, elimination, reconstruction, savings
from tests.calibration.test_calibrating import images, same, small


def least_error(covariance, weight, left):
    """Mean squared error of the best weights for the features that are left."""
    inner = covariance[left][:, left]
    best = torch.linalg.solve(inner, covariance[left] @ weight.T).T
    full = torch.zeros_like(weight)
    full[:, left] = best
    missed = weight - full
    return float(((missed @ covariance) * missed).sum())


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 1000), groups=st.integers(3, 12), each=st.integers(1, 3), staying=st.integers(0, 3))
def test_each_removal_is_the_cheapest_and_costs_what_least_squares_says(seed, groups, each, staying):
    generator = torch.Generator().manual_seed(seed)
    features = groups * each + staying
    x = torch.randn(200, features, generator=generator, dtype=torch.float64)
    covariance = x.T @ x / 200
    weight = torch.randn(4, features, generator=generator, dtype=torch.float64)
    columns = torch.randperm(features, generator=generator)[: groups * each].reshape(groups, each)
    others = torch.from_numpy(np.setdiff1d(np.arange(features), columns))
    order, errors = elimination(covariance, weight, columns)
    left, before = list(range(groups)), 0.0

    def read_without(group):
        return torch.cat([columns[[k for k in left if k != group]].flatten(), others])

    for number, added in zip(order[:-1], errors[:-1], strict=True):
        after = {g: least_error(covariance, weight, read_without(g)) for g in left}
        assert after[number] <= min(after.values()) * 1.001 + 1e-9
        assert added == pytest.approx(after[number] - before, rel=0.02, abs=1e-3)
        before = after[number]
        left.remove(number)


class Hidden(nn.Module):
    """A residual block with hidden channels, of which some tell nothing new."""

    def __init__(self):
        super().__init__()
        self.stem, self.expand = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 12, 1)
        self.project, self.last = nn.Conv2d(12, 8, 1), nn.Conv2d(8, 5, 1)

    def forward(self, x):
        x = self.stem(x)
        return self.last(x + self.project(torch.relu(self.expand(x))))


def scores_of(model, x):
    graph = record(model, tuple(x.shape[1:]))
    coupling = couple(graph)
    return coupling, reconstruction(model, coupling, graph, x.split(8))


def test_copies_of_other_channels_are_worth_nothing_and_streams_stay():
    torch.manual_seed(0)
    model = Hidden().eval()
    with torch.no_grad():
        for parameter in model.expand.parameters():
            parameter[8:] = parameter[:4]
    coupling, scores = scores_of(model, images(16, 32))
    hidden = scores[coupling.layers["expand"].writes]
    pairs = np.stack([hidden[:4], hidden[8:]]).min(0)
    assert (pairs < 1e-3 * np.median(hidden)).all()
    assert (scores[coupling.layers["stem"].writes] == STAYS).all()


def test_a_channel_that_saves_more_may_cost_more():
    model = Hidden().eval()
    graph = record(model, (3, 32, 32))
    coupling = couple(graph)
    saved = savings(model, coupling)[coupling.layers["expand"].writes]
    assert saved == pytest.approx(np.full(12, 30 * 30 * (8 + 8)))
    assert savings(model, coupling, "params")[coupling.layers["expand"].writes] == pytest.approx(np.full(12, 16.0))


def test_depthwise_networks_and_what_is_left_of_the_model():
    model = small("mobilenetv2_050")
    before = copy.deepcopy(model)
    coupling, scores = scores_of(model.train(), images(40, 64))
    assert same(model, before) and model.training
    assert scores.dtype == np.float64
    for name in ("blocks.1.0.conv_pw", "blocks.2.1.conv_pw"):
        assert np.isfinite(scores[coupling.layers[name].writes]).all()
    assert (scores[coupling.layers["blocks.2.1.conv_pwl"].writes] == STAYS).all()
    assert (scores[coupling.layers["conv_head"].writes] == STAYS).all()  # 40 vectors tell nothing of 1280 features
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_what_cannot_be_measured():
    model = Hidden().eval()
    graph = record(model, (3, 32, 32))
    with pytest.raises(ValueError, match="there are no images"):
        reconstruction(model, couple(graph), graph, [])
    with torch.no_grad():
        model.expand.weight[0] = torch.nan
    with pytest.raises(ValueError, match="'project' meets NaN or infinity"):
        reconstruction(model, couple(graph), graph, [images(4, 32)])
