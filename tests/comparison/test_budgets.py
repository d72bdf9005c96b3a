"""How methods come to a budget."""

import pytest

import surgery
from surgery.comparison.budgets import method_budget, nearest_subset, resolution_budget
from surgery.training import load_recipe
from surgery.training.shipped_recipes import find_recipe


def test_the_subset_that_is_nearest():
    saved = {"a": 0.05, "b": 0.08, "c": 0.02, "d": 0.03}
    assert nearest_subset(saved, 0.10) == ["b", "c"]
    assert nearest_subset(saved, 0.13) == ["a", "b"]
    assert nearest_subset(saved, 1.0) == list(saved)


def test_nothing_is_nearest_to_nothing():
    assert nearest_subset({"a": 0.5}, 0.01) == []


@pytest.fixture(scope="module")
def original():
    return surgery.create("cifar_resnet", num_classes=10).eval()


def share(original, method, settings):
    arguments = {"zeta": settings.zeta} if settings.zeta else {}
    converted = surgery.convert(original, method, strict=True, input_size=32, **arguments, **settings.options)
    return surgery.cost(converted, 32).macs / surgery.cost(original, 32).macs


def test_a_method_with_an_option_gets_it_and_keeps_what_is_for_it(original):
    recipe = load_recipe(find_recipe("quickstart"), ["surgery.options={macs: 0.5, rule: global, tau: 0.5}"])
    settings = method_budget(recipe, original, "l1", 0.7)
    assert settings.options == {"rule": "global", "macs": 0.7}
    assert settings.zeta is None


@pytest.mark.parametrize("budget", [0.9, pytest.param(0.6, marks=pytest.mark.slow)])
def test_a_method_without_one_comes_near_by_sites_or_by_zeta(original, budget):
    recipe = load_recipe(find_recipe("quickstart"))
    settings = method_budget(recipe, original, "dwp", budget)
    assert ("include" in settings.options) == (budget == 0.9)
    assert share(original, "dwp", settings) == pytest.approx(budget, abs=0.05)


def test_smaller_images(original):
    recipe = load_recipe(find_recipe("quickstart"), ["data.image_size=32"])
    side = resolution_budget(recipe, original, 0.5).image_size
    costs = {size: surgery.cost(original, size).macs for size in (side - 1, side, side + 1, 32)}
    distances = {size: abs(macs / costs[32] - 0.5) for size, macs in costs.items()}
    assert min(distances, key=distances.get) == side
