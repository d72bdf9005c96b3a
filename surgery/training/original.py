"""The network that a recipe begins with."""

import torch
from torch import nn

import surgery
from surgery.training.recipe import Recipe, RecipeError


def make_original(recipe: Recipe, classes: int, *, download: bool = True) -> nn.Module:
    """The recipe's checkpoint, or its model, pretrained or freshly initialised; not trained here yet.

    Args:
        classes: of the data set.
        download: whether pretrained weights may be fetched; without, the network has none in particular.

    Raises:
        RecipeError: it does not give one logit for each class, of an image or of every pixel.
        SurgeryError: it cannot be made.
    """
    model = recipe.model
    if model.checkpoint:
        network = surgery.load(model.checkpoint)
    else:
        network = surgery.create(model.name, pretrained=model.pretrained and download, **model.kwargs)
    size = recipe.data.image_size
    with torch.no_grad():
        output = network.eval()(torch.zeros(1, 3, size, size))
    wanted = (1, classes, size, size) if recipe.data.segments else (1, classes)
    if not isinstance(output, torch.Tensor) or output.shape != wanted:
        found = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
        raise RecipeError(
            f"model {model.checkpoint or model.name} gives {found} for one image, data {recipe.data.name} has "
            f"{classes} classes: (1, {classes}) is needed; model.kwargs={{num_classes: {classes}}} gives that, mostly"
        )
    return network.train()
