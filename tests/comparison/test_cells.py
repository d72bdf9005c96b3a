"""Cells of a comparison."""

import dataclasses
import json
from pathlib import Path

import pytest

from surgery.comparison.budgets import BudgetSettings
from surgery.comparison.cells import Cell, Variant, variant_cell
from surgery.training.recipe import DataSettings, Recipe, RecipeError, TrainSettings


@pytest.mark.parametrize(("side", "expected"), [(None, 20), (26, 16), (12, None)])
def test_smaller_images_begin_with_the_same_share_of_their_side(side, expected):
    recipe = Recipe(data=DataSettings(image_size=32), finetune=TrainSettings(epochs=3, first_size=20))
    variant = Variant("resolution", 0.8, BudgetSettings("smaller", image_size=side))
    cell = variant_cell(recipe, Path("runs"), Path("m.safetensors"), variant, (0, 3))
    assert cell.recipe.finetune.first_size == expected
    assert cell.recipe.data.image_size == (side or 32)


def test_a_finished_cell_of_an_earlier_version_lacks_the_keys_that_have_come_since(tmp_path):
    cell = Cell("one", "original", Recipe(output=str(tmp_path / "one")))
    cell.write_spec()
    spec = json.loads(cell.spec.read_text())
    del spec["recipe"]["finetune"]["betas"], spec["recipe"]["data"]["vflip"]
    cell.spec.write_text(json.dumps(spec))
    cell.check_spec()
    other = dataclasses.replace(cell.recipe, finetune=TrainSettings(optimizer="adam", betas=(0.9, 0.99)))
    with pytest.raises(
        RecipeError, match=r"was run with finetune\.betas=None, now \[0\.9, 0\.99\]; finetune\.optimizer"
    ):
        Cell("one", "original", other).check_spec()
    spec["recipe"]["finetune"]["forgotten"] = 1
    cell.spec.write_text(json.dumps(spec))
    with pytest.raises(RecipeError, match=r"finetune\.forgotten=1, now None"):
        cell.check_spec()
