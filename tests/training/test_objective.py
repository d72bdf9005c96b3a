"""Optimisers and schedules."""

import pytest
import torch

from surgery.training.objective import make_scheduler
from surgery.training.recipe import TrainSettings

STEPS = 10  # of an epoch


def rates(**settings):
    """The learning rate of each step of a training."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=settings["lr"])
    scheduler = make_scheduler(optimizer, TrainSettings(**settings), STEPS)
    steps = []
    for step in range(settings["epochs"] * STEPS):
        steps.append(optimizer.param_groups[0]["lr"])
        scheduler.step_update(step + 1)
    return steps, optimizer.param_groups[0]["lr"]


@pytest.mark.parametrize("warmup", [1, 1.5, 3])
def test_linear_rises_to_the_whole_rate_and_falls_to_nothing(warmup):
    steps, last = rates(scheduler="linear", lr=0.4, epochs=4, warmup_epochs=warmup)
    rise, fall = round(warmup * STEPS), round((4 - warmup) * STEPS)
    assert steps[:rise] == pytest.approx([0.004 + 0.396 * step / rise for step in range(rise)])
    assert steps[rise:] == pytest.approx([0.4 * (1 - step / fall) for step in range(fall)])
    assert last == 0


def test_linear_without_warming_up_and_with_nothing_else():
    assert rates(scheduler="linear", lr=1.0, epochs=1, warmup_epochs=0)[0] == pytest.approx(
        [1 - step / 10 for step in range(10)]
    )
    steps, _ = rates(scheduler="linear", lr=1.0, epochs=1, warmup_epochs=1)
    assert steps == pytest.approx([0.01 + 0.099 * step for step in range(10)])


def test_others_begin_to_decay_while_they_warm_up():
    steps, _ = rates(scheduler="poly", power=1.0, lr=1.0, epochs=4, warmup_epochs=1)
    assert steps[STEPS] == pytest.approx(0.75)
