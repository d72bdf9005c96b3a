"""Recipes: train or load a network, convert it, fine-tune it with the original as teacher, evaluate, save."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from surgery.core.extras import check_extra

if TYPE_CHECKING:
    from surgery.training.dry_run import describe
    from surgery.training.job import run
    from surgery.training.recipe import Recipe, load_recipe

__all__ = ["Recipe", "describe", "load_recipe", "run"]
_MODULES = {"Recipe": "recipe", "describe": "dry_run", "load_recipe": "recipe", "run": "job"}


def __getattr__(name: str) -> Any:
    """What is asked for, imported then: a help text need not wait for all that trains, nor for packages of an extra."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    check_extra("train", "surgery.training")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
