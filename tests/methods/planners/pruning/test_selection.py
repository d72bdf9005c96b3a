"""The order in which channels go, and how far a target is along it."""

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from surgery.graph import record
from surgery.graph.coupling import couple
from surgery.methods.planners.pruning.axes import Axis, axes_of
from surgery.methods.planners.pruning.selection import Limits, Target, meet, order_of_removal

AXES = [
    Axis("a", ("a",), ("b",), np.arange(10)),
    Axis("b", ("b",), ("c",), np.arange(10, 16), channels_each=4),
]


@pytest.mark.parametrize(
    ("limits", "steps"),
    [
        (Limits(), ([1] * 9, [1] * 5)),
        (Limits(round_to=8), ([2], [2, 2])),
        (Limits(round_to=3), ([1, 3, 3], [3])),
        (Limits(least=8), ([1, 1], [1] * 4)),
        (Limits(share=0.5), ([1] * 5, [1] * 3)),
        (Limits(least=20), ([], [1])),
    ],
)
def test_limits_say_what_may_go(limits, steps):
    assert tuple(limits.removable(axis) for axis in AXES) == steps


def test_uniform_takes_the_same_share_and_global_the_least():
    scores = np.concatenate([np.arange(10.0)[::-1], np.arange(100.0, 106.0)])
    uniform = order_of_removal(AXES, scores, Limits(), "uniform")
    fractions = [unit.fraction for unit in uniform]
    assert fractions == sorted(fractions)
    assert uniform[0].classes.tolist() == [9]
    ranked = order_of_removal(AXES, scores, Limits(), "global")
    assert [unit.classes[0] for unit in ranked] == [9, 8, 7, 6, 5, 4, 3, 2, 1, 10, 11, 12, 13, 14]


@given(
    scores=st.lists(st.floats(0, 1), min_size=16, max_size=16),
    cost=st.lists(st.integers(1, 100), min_size=16, max_size=16),
    share=st.floats(0.3, 1),
    rule=st.sampled_from(["uniform", "global"]),
)
@settings(max_examples=100, deadline=None)
def test_no_shorter_or_longer_prefix_is_nearer(scores, cost, share, rule):
    costs, nothing = np.array(cost), np.zeros(16, bool)
    order = order_of_removal(AXES, np.array(scores), Limits(), rule)
    target = Target("macs", share, int(costs.sum()), lambda gone: int(costs[~gone].sum()))
    gone = meet(target, order, nothing)
    prefix = nothing.copy()
    misses = [abs(target.miss(prefix))]
    for unit in order:
        prefix[unit.classes] = True
        misses.append(abs(target.miss(prefix)))
    assert abs(target.miss(gone)) <= min(misses) + 1e-12
    for axis in AXES:  # what goes of an axis is worth no more than what stays
        own = np.array(scores)[axis.classes]
        mask = gone[axis.classes]
        assert not mask.any() or own[mask].max() <= own[~mask].min()


def test_axes_are_named_by_their_first_writer_and_hold_all_that_is_removable():
    with torch.device("meta"):
        model = timm.create_model("regnety_002")
    coupling = couple(record(model, (3, 64, 64)))
    axes = axes_of(coupling)
    np.testing.assert_array_equal(np.sort(np.concatenate([axis.classes for axis in axes])), coupling.removable())
    by_name = {axis.name: axis for axis in axes}
    first = by_name["s3.b1.conv1.conv"]
    assert first.channels_each == model.s3.b1.conv2.conv.groups
    assert first.width == model.s3.b1.conv1.conv.out_channels
    stream = by_name["s3.b1.conv3.conv"]
    assert {"s3.b1.downsample.conv", "s3.b2.conv3.conv"} <= set(stream.writers)
