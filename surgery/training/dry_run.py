"""What a recipe would do, without doing it."""

from torch import Tensor

import surgery
from surgery.checkpoint.pretrained_weights import published
from surgery.checkpoint.source import parse_source
from surgery.core.table import si, table
from surgery.training.datasets import open_dataset
from surgery.training.image_dataset import ImageDataset
from surgery.training.image_scan import check_headers
from surgery.training.job_setup import make_accelerator, make_execution, make_task
from surgery.training.recipe import Recipe
from surgery.training.recipe_text import recipe_text
from surgery.training.rehearsal import Rehearsed, rehearse


def describe(recipe: Recipe) -> str:
    """The resolved recipe, the plan, the cost before and after, and the shapes of a batch; nothing is downloaded.

    All of the job is made once (:func:`surgery.training.rehearsal.rehearse`).

    Raises:
        RecipeError, SurgeryError, UnreadableImagesError, ValueError, OSError: what would stop the job at its beginning.
    """
    accelerator = make_accelerator(recipe)
    data = open_dataset(recipe.data, accelerator.print)
    if not recipe.data.skip_unreadable:
        check_headers(data, accelerator)
    rehearsed = rehearse(accelerator, recipe, data, make_task(recipe, data), make_execution(recipe))
    shapes = [
        f"{name}: {len(images)} images, {_labels(recipe, data)}; a batch: {_shape(batch[0])}, {_shape(batch[1])}"  # type: ignore[arg-type]
        for name, images, batch in zip(("training", "test"), (data.train, data.test), rehearsed.batches, strict=True)
    ]
    if recipe.data.skip_unreadable:
        shapes.append("the job will leave out images that cannot be read (data.skip_unreadable=true)")
    parts = [
        recipe_text(recipe.to_dict(), sort_keys=False),
        str(rehearsed.plan),
        _costs(rehearsed, recipe.data.image_size),
        "\n".join([f"original: {rehearsed.original.origin}", *_published(recipe), *shapes]),
    ]
    return "\n\n".join(part.rstrip() for part in parts)


def _costs(rehearsed: Rehearsed, size: int) -> str:
    networks = (("original", rehearsed.original.network), ("converted", rehearsed.converted))
    costs = [(name, surgery.cost(network, (3, size, size))) for name, network in networks]
    rows = [(name, si(cost.macs), si(cost.params), si(cost.memory, "B")) for name, cost in costs]
    return table(("", "MACs", "params", "memory"), rows, right=(1, 2, 3))


def _published(recipe: Recipe) -> list[str]:
    """Where the job will have its pretrained weights from."""
    model = recipe.model
    if not model.pretrained or model.weights or model.checkpoint:
        return []
    source = parse_source(model.name)
    name = model.kwargs.get("backbone", "resnet50") if source.builder == "pspnet" else source.name
    weights = published("timm" if source.builder == "pspnet" else source.builder, name)
    return [str(weights)] if weights else []


def _labels(recipe: Recipe, data: ImageDataset) -> str:
    return "with masks" if recipe.data.saliency else f"{data.classes} classes"


def _shape(tensor: Tensor | list[Tensor]) -> str:
    if isinstance(tensor, list):
        return f"{len(tensor)} masks of their own sizes"
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
