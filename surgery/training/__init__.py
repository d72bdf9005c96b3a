"""Recipes: train or load a network, convert it, fine-tune it with the original as teacher, evaluate, save."""

from surgery.training.dry_run import describe
from surgery.training.job import run
from surgery.training.recipe import Recipe, load_recipe

__all__ = ["Recipe", "describe", "load_recipe", "run"]
