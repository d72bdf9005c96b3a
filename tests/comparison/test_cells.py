"""Cells of a comparison."""

from pathlib import Path

import pytest

from surgery.comparison.budgets import BudgetSettings
from surgery.comparison.cells import Variant, variant_cell
from surgery.training.recipe import DataSettings, Recipe, TrainSettings


@pytest.mark.parametrize(("side", "expected"), [(None, 20), (26, 16), (12, None)])
def test_smaller_images_begin_with_the_same_share_of_their_side(side, expected):
    recipe = Recipe(data=DataSettings(image_size=32), finetune=TrainSettings(epochs=3, first_size=20))
    variant = Variant("resolution", 0.8, BudgetSettings("smaller", image_size=side))
    cell = variant_cell(recipe, Path("runs"), Path("m.safetensors"), variant, (0, 3))
    assert cell.recipe.finetune.first_size == expected
    assert cell.recipe.data.image_size == (side or 32)
