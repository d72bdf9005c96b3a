"""The network that a recipe begins with."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

import surgery
from surgery.checkpoint.source import MEMORY, Source, parse_source
from surgery.models.pspnet import PSPNet
from surgery.training.recipe import Recipe, RecipeError
from surgery.training.weights_file import class_tensors, load_weights


@dataclass(frozen=True)
class Original:
    """A network to convert, not trained here yet.

    Attributes:
        origin: where it and its weights come from, in words.
        new: names of the tensors that are as they were initialised although the others are not: a new head's.
    """

    network: nn.Module
    origin: str
    new: tuple[str, ...] = ()


def make_original(recipe: Recipe, classes: int, *, download: bool = True) -> nn.Module:
    """The network of :func:`find_original`, in training mode; raises as that does."""
    return find_original(recipe, classes, download=download).network.train()


def find_original(recipe: Recipe, classes: int, *, download: bool = True) -> Original:
    """The recipe's checkpoint, or its model, with pretrained weights, with those of a file, or freshly initialised.

    Args:
        classes: of the dataset.
        download: whether pretrained weights may be fetched; without, the network has none in particular.

    Raises:
        RecipeError: it does not give one logit for each class, of an image or of every pixel; for saliency masks, one
            for every pixel.
        SurgeryError, OSError: it cannot be made.
    """
    original = _from_checkpoint(recipe) if recipe.model.checkpoint else _from_name(recipe, classes, download)
    _check_outputs(recipe, original.network, classes)
    return original


def _from_checkpoint(recipe: Recipe) -> Original:
    path = str(recipe.model.checkpoint)
    network = surgery.load(path)
    source: Source = getattr(network, MEMORY)
    other = {name: value for name, value in recipe.model.kwargs.items() if source.kwargs.get(name, ...) != value}
    if other:
        raise RecipeError(
            f"model.kwargs has {other}: model.checkpoint={path} is of {source}, which it is made with; "
            "model.kwargs={} is needed, or model.weights=FILE for other arguments"
        )
    return Original(network, f"{path} ({source})")


def _from_name(recipe: Recipe, classes: int, download: bool) -> Original:
    model = recipe.model
    source = parse_source(model.name, _kwargs_with_classes(model.name, model.kwargs, classes))
    published = model.pretrained and not model.weights
    network = surgery.create(model.name, pretrained=published and download, **source.kwargs)
    if model.weights:
        new = load_weights(network, source, classes, model.weights).new
        return Original(network, f"{model.name}, weights of {model.weights}{_new_in_words(new, classes)}", new)
    if not published:
        return Original(network, f"{model.name}, freshly initialised")
    new = _new_of_pretrained(network, source, classes)
    return Original(network, f"{model.name}, pretrained{_new_in_words(new, classes)}", new)


def _kwargs_with_classes(name: str, kwargs: dict[str, Any], classes: int) -> dict[str, Any]:
    """A builder's arguments, with the dataset's classes where it can be told them and is not."""
    if "num_classes" in kwargs:
        return kwargs
    with_classes = {**kwargs, "num_classes": classes}
    return with_classes if class_tensors(parse_source(name, kwargs), classes) else kwargs


def _new_of_pretrained(network: nn.Module, source: Source, classes: int) -> tuple[str, ...]:
    """Tensors of the head, where the published weights have another, or none."""
    config = getattr(network, "pretrained_cfg", None)
    published = config.get("num_classes") if isinstance(config, dict) else None
    if isinstance(network, PSPNet) or (published is not None and published != classes):
        return tuple(sorted(class_tensors(source, classes)))
    return ()


def _new_in_words(new: tuple[str, ...], classes: int) -> str:
    return f"; new for {classes} classes: {', '.join(new)}" if new else ""


def _check_outputs(recipe: Recipe, network: nn.Module, classes: int) -> None:
    model, size = recipe.model, recipe.data.image_size
    with torch.no_grad():
        output = network.eval()(torch.zeros(1, 3, size, size))
    expected = (1, classes, size, size) if recipe.data.has_maps else (1, classes)
    if isinstance(output, torch.Tensor) and output.shape == expected:
        return
    actual = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
    remedy = (
        "a network that is to learn other classes begins with model.weights=FILE (its head is made anew, baseline "
        "trains it) in place of model.checkpoint"
        if model.checkpoint
        else f"model.kwargs={{num_classes: {classes}}} gives that, mostly"
    )
    raise RecipeError(
        f"model {model.checkpoint or model.name} gives {actual} for one image, data {recipe.data.name} has "
        f"{'masks' if recipe.data.saliency else f'{classes} classes'}: {expected} is needed; {remedy}"
    )
