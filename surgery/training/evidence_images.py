"""The training images that a method looks at before it decides."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch.utils.data import Dataset

from surgery.planning.registry import method_named
from surgery.training.data_loading import calibration_images, labelled_images
from surgery.training.recipe import Recipe, RecipeError

DEFAULT = 1024


class EvidenceImages:
    """Batches that can be read again and again."""

    def __init__(self, make: Callable[[], Iterable[Any]]) -> None:
        self._make = make

    def __iter__(self) -> Iterator[Any]:
        yield from self._make()


def evidence_images(recipe: Recipe, images: Dataset, seed: int, most: int | None = None) -> EvidenceImages | None:
    """Batches of training images, chosen by the seed, not augmented; (images, labels) where the method needs labels.

    Args:
        images: the training images.
        most: of them, in place of as many as the recipe says.

    Returns:
        Without labels those that calibration takes, as many as ``surgery.images`` says; None where the recipe gives
        the method none. They are read when they are asked for.

    Raises:
        RecipeError: the method needs classes, and the dataset has label maps.
    """
    available: int = len(images)  # type: ignore[arg-type]
    count, labelled = _count(recipe, available), method_named(recipe.surgery.method).evidence == "labelled images"
    if not count:
        return None
    if labelled and recipe.data.has_maps:
        raise RecipeError(
            f"surgery.method={recipe.surgery.method} needs images with a class each; data.name={recipe.data.name} has "
            "label maps"
        )
    chosen = min(count, available if most is None else most)
    read = labelled_images if labelled else calibration_images
    return EvidenceImages(lambda: read(images, recipe.data, chosen, seed))


def _count(recipe: Recipe, available: int) -> int:
    settings = recipe.surgery
    if settings.images is not None:
        return settings.images
    needed = method_named(settings.method).evidence in ("images", "labelled images")
    return min(DEFAULT, available) if needed else settings.calibrate
