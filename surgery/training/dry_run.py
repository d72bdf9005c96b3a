"""What a recipe would do, without doing it."""

import yaml

import surgery
from surgery.table import si, table
from surgery.training.data import make_loader
from surgery.training.data_sets import open_data
from surgery.training.original import make_original
from surgery.training.recipe import Recipe


def describe(recipe: Recipe) -> str:
    """The resolved recipe, the plan, the cost before and after, and the shapes of a batch; nothing is downloaded.

    Raises:
        RecipeError, SurgeryError, ValueError: what would stop the job at its beginning.
    """
    data = open_data(recipe.data)
    shapes = []
    for name, images, training in (("training", data.train, True), ("test", data.test, False)):
        inputs, labels = next(iter(make_loader(images, recipe.data, training)))
        count = len(images)  # type: ignore[arg-type]
        shapes.append(f"{name}: {count} images, {data.classes} classes; a batch: {_shape(inputs)}, {_shape(labels)}")
    original = make_original(recipe, data.classes, download=False)
    wanted, size = recipe.surgery, recipe.data.image_size
    plan = surgery.plan(original, wanted.method, **recipe.surgery_arguments)
    converted = surgery.convert(original, wanted.method, strict=True, **recipe.surgery_arguments)
    costs = [(name, surgery.cost(n, (3, size, size))) for name, n in (("original", original), ("converted", converted))]
    rows = [(name, si(cost.macs), si(cost.params), si(cost.memory, "B")) for name, cost in costs]
    parts = [
        yaml.safe_dump(recipe.to_dict(), sort_keys=False),
        str(plan),
        table(("", "MACs", "params", "memory"), rows, right=(1, 2, 3)),
        "\n".join(shapes),
    ]
    return "\n\n".join(part.rstrip() for part in parts)


def _shape(tensor: object) -> str:
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"  # type: ignore[attr-defined]
