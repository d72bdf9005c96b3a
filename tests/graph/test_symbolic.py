import datetime
import enum
import gc
import itertools
import math
import os
import pathlib
import random
import re
import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import fx, nn
from torchvision.ops import StochasticDepth

import surgery
from surgery.methods.pix.layer import PiX
from tests.small_models import Bottleneck, Net

SIZE = (3, 8, 8)
GENERATOR = np.random.default_rng(0)
CALLS = itertools.count()
STATE = {"calls": 0}
TOTAL = 0


class Style(enum.Enum):
    FUNCTIONAL = "functional"


class Deciding(Bottleneck):
    """A bottleneck with a functional activation, which the path that ``decide`` says goes around."""

    n, count = 0, 0

    def __init__(self):
        super().__init__("functional", F.silu)
        self.drop_prob, self.rates = 0.3, [0.0, 0.1]
        self.rng, self.own, self.torch_rng = random.Random(0), np.random.default_rng(0), torch.Generator()
        self.warm, self.epoch, self.stride, self.residual = False, 0, 1, True
        self.register_buffer("steps", torch.zeros(()))

    def set_epoch(self, epoch):
        self.epoch, self.warm = epoch, epoch < 5

    def decide(self):
        return False

    def forward(self, x):
        if self.decide():
            return x
        return super().forward(x)


def global_counter(_):
    global TOTAL  # noqa: PLW0603
    TOTAL += 1
    return TOTAL > 1000


def counted(block):
    block.n += 1
    return block.n > 1000


def noted(block):
    STATE["calls"] += 1
    return STATE["calls"] > 1000


def enclosed():
    calls = 0

    def count(_):
        nonlocal calls
        calls += 1
        return calls > 1000

    return count


DECISIONS = {
    "random.random in training": lambda block: block.training and random.random() < 0.3,
    "random.random": lambda _: random.random() < 1e-9,
    "random.uniform": lambda _: random.uniform(0, 1) < 1e-9,
    "a generator of its own": lambda block: block.rng.random() < 1e-9,
    "torch.rand in training": lambda block: block.training and torch.rand(1) < 0.3,
    "torch.rand": lambda _: torch.rand(1).item() < 1e-9,
    "bernoulli": lambda _: torch.empty(1).bernoulli_(1e-9) > 0,
    "a torch generator": lambda block: torch.rand(1, generator=block.torch_rng).item() < 1e-9,
    "numpy.random": lambda _: np.random.rand() < 1e-9,
    "a numpy generator": lambda block: block.own.random() < 1e-9,
    "a numpy generator of the module": lambda _: GENERATOR.random() < 1e-9,
    "a clock": lambda _: time.time() < 0,
    "a date": lambda _: datetime.datetime.now().year < 2000,
    "the system's chance": lambda _: random.SystemRandom().random() < 1e-9,
    "the system's chance in bytes": lambda _: os.urandom(4) == b"none",
    "an environment variable": lambda _: os.environ.get("DROP") == "1",
    "a process": lambda _: os.getpid() == 0,
    "the load of the machine": lambda _: os.getloadavg()[0] < 0,
    "threads": lambda _: torch.get_num_threads() > 10_000,
    "a seed": lambda _: torch.initial_seed() == -1,
    "a seed in training": lambda block: block.training and torch.initial_seed() == -1,
    "whether gradients are recorded": lambda _: torch.is_grad_enabled() is None,
    "a hash": lambda _: hash("text") == 0,
    "a folder": lambda _: pathlib.Path("none").exists(),
    "a step counter": counted,
    "a counter that alternates": lambda _: next(CALLS) % 2 == 0,
    "a counter outside": noted,
    "a global counter": global_counter,
    "an enclosed counter": enclosed(),
    "a probability": lambda block: block.drop_prob > 1,
    "a probability in training": lambda block: block.training and block.drop_prob > 0.1,
    "computed from a probability": lambda block: 1 - block.drop_prob < 0,
    "one of several": lambda block: block.rates[1] > 0.5,
    "a schedule": lambda block: block.epoch > 5,
    "a switch": lambda block: block.warm,
    "a buffer": lambda block: block.steps > 10,
}


def planned(decide):
    torch.manual_seed(0)
    model = Net("module", "module")
    model.blocks[0] = Deciding()
    type(model.blocks[0]).decide = decide
    return model, surgery.plan(model, input_size=SIZE)


@pytest.fixture(autouse=True)
def _decides_nothing_afterwards():
    yield
    Deciding.decide = lambda _: False


@pytest.mark.parametrize("name", DECISIONS)
def test_control_flow_on_what_may_change_refuses_the_rewriting_whatever_is_drawn(name):
    for seed in range(3):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        _, plan = planned(DECISIONS[name])
        assert [row.site for row in plan.sites] == ["blocks.1.conv1"]
        reason = {item.name: item.reason for item in plan.skipped}["blocks.0.conv1"]
        # what alternates may have been drawn in the recorded forward already
        assert "Deciding" in reason or name == "a counter that alternates"


@pytest.mark.parametrize(
    "decide",
    [
        lambda block: block.stride > 1,
        lambda block: not block.residual,
        lambda block: block.conv1.in_channels != 16,
        lambda block: block.style != "functional",
        lambda block: math.gcd(block.stride, 4) > 1 or max(itertools.chain([block.stride], (1,))) > 1,
        lambda block: re.match("f", block.style) is None,
        lambda block: bool(np.prod(np.array([block.stride, 1])) > 1),
        lambda block: torch.jit.is_scripting() or torch.jit.is_tracing(),
        lambda block: Style(block.style) is not Style.FUNCTIONAL,
    ],
    ids=["int", "bool", "shape", "string", "arithmetic", "pattern", "numpy", "tools of torch", "enum"],
)
def test_structure_may_decide(decide):
    model, plan = planned(decide)
    assert [row.site for row in plan.sites] == ["blocks.0.conv1", "blocks.1.conv1"]
    assert isinstance(surgery.convert(model, input_size=SIZE).blocks[0], fx.GraphModule)


@pytest.mark.parametrize("layer", [DropPath(0.5), StochasticDepth(0.5, "row"), nn.Dropout(0.5)])
def test_layers_that_drop_stay_what_they_are(layer):
    class Dropping(Bottleneck):
        def __init__(self):
            super().__init__("functional", F.silu)
            self.path = layer

        def forward(self, x):
            y = self.conv3(F.silu(self.bn2(self.conv2(F.silu(self.bn1(self.conv1(x)))))))
            return x + self.path(y)

    model = Net("module")
    model.blocks[0] = Dropping()
    converted = surgery.convert(model, input_size=SIZE)
    assert isinstance(converted.blocks[0].conv1, PiX)
    x = torch.randn(16, 16, 8, 8)
    with torch.no_grad():
        assert torch.equal(converted.blocks[0].eval()(x), converted.blocks[0].eval()(x))
        assert not torch.equal(converted.blocks[0].train()(x), converted.blocks[0].train()(x))


def test_planning_leaves_the_generators_alone():
    states = random.getstate(), torch.get_rng_state(), np.random.get_state()[1]
    planned(DECISIONS["random.random"])
    planned(DECISIONS["numpy.random"])
    assert random.getstate() == states[0]
    assert np.array_equal(np.random.get_state()[1], states[2])


def test_tensors_made_on_the_way_are_refused():
    model = Net("module", "module")

    class Making(Deciding):
        def forward(self, x):
            return Bottleneck.forward(self, x) * torch.ones(16, 1, 1)

    model.blocks[0] = Making()
    plan = surgery.plan(model, input_size=SIZE)
    assert "tensors of its own" in {item.name: item.reason for item in plan.skipped}["blocks.0.conv1"]


class Cycle:
    """Garbage that only a collection finds, and that draws a random number as it goes."""

    def __init__(self):
        self.own = self

    def __del__(self):
        random.random()


def test_finalizers_of_other_objects_are_not_the_forward():
    thresholds = gc.get_threshold()
    cycles = [Cycle() for _ in range(200)]
    try:
        gc.set_threshold(20, 1, 1)
        del cycles
        _, plan = planned(lambda _: False)
    finally:
        gc.set_threshold(*thresholds)
    assert [row.site for row in plan.sites] == ["blocks.0.conv1", "blocks.1.conv1"]
