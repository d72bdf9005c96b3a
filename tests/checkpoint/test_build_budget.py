import sys
import threading

import pytest
import timm
import torch
from torch import nn

import surgery.checkpoint.source as source_module
from surgery.checkpoint.build_budget import CALL, FLOOR, PYTHON_EVENT, Budget, BudgetError
from surgery.checkpoint.source import Source, build, build_on_meta
from surgery.core.errors import SourceError


def spent(budget, make):
    before = budget.left
    with budget.counting():
        make()
    return before - budget.left


def test_is_set_by_the_tensors():
    model = timm.create_model("test_resnet")
    budget = Budget.of(model.state_dict().values())
    assert budget.tensors == len(model.state_dict())
    assert budget.elements == sum(t.numel() for t in model.state_dict().values())
    assert budget.left > FLOOR


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "resnetblur50", "swin_tiny_patch4_window7_224"])
@pytest.mark.parametrize("make", [build, build_on_meta])
def test_timm_s_networks_take_a_small_share(name, make):
    budget = Budget.of(timm.create_model(name).state_dict().values())
    whole = budget.left
    make(Source("timm", name), budget=budget)
    assert budget.left > 0.7 * whole


def test_counts_modules_without_tensors():
    budget = Budget(0, 0)
    assert spent(budget, lambda: nn.Sequential(*[nn.Identity() for _ in range(100)])) == 100 * CALL


def test_counts_elements_on_the_cpu_only():
    assert spent(Budget(0, 0), lambda: torch.zeros(1000)) == CALL + 1000
    assert spent(Budget(0, 0), lambda: torch.zeros(1000, device="meta")) == CALL
    assert spent(Budget(0, 0), lambda: torch.zeros(10, 1) + torch.zeros(1, 10)) == 3 * CALL + 10 + 10 + 100


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.zeros(10**13),
        lambda: torch.zeros(10**6, 1) - torch.zeros(1, 10**6),
        lambda: torch.zeros(1).expand(10**12),
        lambda: torch.arange(10**13),
        lambda: torch.zeros(10**6).outer(torch.zeros(10**6)),
        lambda: torch.zeros(2, 3).repeat(10**6, 10**6),
    ],
)
def test_memory_is_refused_before_it_is_taken(make):
    with pytest.raises(BudgetError, match="more than a network of 0 tensors with 0 numbers"), Budget(0, 0).counting():
        make()


def test_what_other_threads_build_is_not_counted():
    budget = Budget(0, 0)
    thread = threading.Thread(target=lambda: nn.Sequential(nn.Linear(3, 3), nn.Identity()))

    def make():
        thread.start()
        thread.join()

    assert spent(budget, make) == 0


def test_nothing_is_counted_afterwards():
    budget = Budget(0, 0)
    with pytest.raises(ValueError, match="inside"), budget.counting():
        raise ValueError("inside")
    left = budget.left
    nn.Sequential(nn.Linear(3, 3), nn.Identity())
    assert budget.left == left


@pytest.mark.parametrize(
    "kwargs",
    [{"layers": [10**9, 1, 1, 1]}, {"layers": [100_000, 1, 1, 1]}, {"channels": [10**9] * 4}, {"num_classes": 10**12}],
)
def test_builders_that_never_end(kwargs):
    with pytest.raises(SourceError, match="more than a network of 3 tensors|fits such a network"):
        build_on_meta(Source("cifar_resnet", "", kwargs), budget=Budget(3, 100))


def test_limits_follow_the_file():
    limits = Budget.of([torch.zeros(21_841, 100), torch.zeros(0, 10**9)]).limits
    assert (limits.total, limits.number, limits.image, limits.window) == (2_184_100, 87_364, 4 * 1477, 1477)
    assert Budget.of([torch.zeros(0, 10**9)]).limits == Budget(0, 0).limits


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("tiny_vit_5m_224", {"window_sizes": [150] * 4}),
        ("tiny_vit_5m_224", {"window_sizes": [1, 30_000, 1, 1]}),
        ("efficientvit_m0", {"img_size": 20_000, "window_size": [1_000] * 3}),
        ("efficientvit_m0", {"img_size": 1_024, "window_size": [200] * 3}),
    ],
)
def test_loops_of_python_end(name, kwargs):
    with pytest.raises(SourceError, match="more than a network of 3 tensors|fits such a network"):
        build_on_meta(Source("timm", name, kwargs), budget=Budget(3, 100))
    assert sys.getprofile() is None


def test_python_s_calls_are_counted_while_building_only():
    budget = Budget(0, 0)
    with budget.building():
        [abs(n) for n in range(1_000)]
    assert 2_000 * PYTHON_EVENT <= FLOOR - budget.left < 2_100 * PYTHON_EVENT
    left = budget.left
    [abs(n) for n in range(1_000)]
    assert budget.left == left


def test_a_profiler_at_work_goes_on():
    def profiler(*_):
        return None

    sys.setprofile(profiler)
    try:
        with Budget(0, 0).building():
            assert sys.getprofile() is profiler
        assert sys.getprofile() is profiler
    finally:
        sys.setprofile(None)


@pytest.mark.parametrize("kind", ["parameter", "buffer"])
def test_parameters_end_where_the_file_has_none(kind):
    def register():
        module = nn.Module()
        for index in range(4_100):
            if kind == "parameter":
                module.register_parameter(f"p{index}", nn.Parameter(torch.zeros(0)))
            else:
                module.register_buffer(f"b{index}", torch.zeros(0), persistent=False)

    with pytest.raises(BudgetError, match="cannot have more parameters than the 0 tensors"), Budget(0, 0).building():
        register()
    with Budget(70, 70).building():
        register()


def test_empty_tensors_buy_nothing():
    assert Budget.of([torch.zeros(0)] * 20_000) == Budget(0, 0)
    budget = Budget.of([torch.zeros(0)] * 20_000)
    with pytest.raises(BudgetError, match="cannot have more parameters|more than a network"):
        build_on_meta(Source("timm", "resnet50", {"layers": [30_000, 1, 1, 1]}), budget=budget)


def test_without_memory_it_is_not_built_again(monkeypatch):
    attempts = []

    def hungry():
        attempts.append(1)
        raise MemoryError("can't allocate memory")

    monkeypatch.setitem(source_module._BUILDERS, "hungry", hungry)
    with pytest.raises(SourceError, match="MemoryError can't allocate memory"):
        build_on_meta(Source("hungry"))
    assert len(attempts) == 1
