"""Which sites come nearest to a budget."""

from surgery.comparison.budgets import nearest_subset


def test_the_subset_that_is_nearest():
    saved = {"a": 0.05, "b": 0.08, "c": 0.02, "d": 0.03}
    assert nearest_subset(saved, 0.10) == ["b", "c"]
    assert nearest_subset(saved, 0.13) == ["a", "b"]
    assert nearest_subset(saved, 1.0) == list(saved)


def test_nothing_is_nearest_to_nothing():
    assert nearest_subset({"a": 0.5}, 0.01) == []
