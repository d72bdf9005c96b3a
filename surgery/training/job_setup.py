"""What runs the networks of a recipe, how, and what for."""

import torch
from accelerate import Accelerator

from surgery.training.classification_task import ImageClassification
from surgery.training.image_dataset import ImageDataset
from surgery.training.precision import precision_here
from surgery.training.recipe import Recipe
from surgery.training.saliency_task import SalientObjectDetection
from surgery.training.segmentation_task import SemanticSegmentation
from surgery.training.task import Task
from surgery.training.tracking import check_tracker
from surgery.training.training_spec import Execution
from surgery.vision.segmentation import View


def make_accelerator(recipe: Recipe) -> Accelerator:
    """What runs the recipe's trainings; raises RecipeError where its tracker is not installed."""
    check_tracker(recipe.track)  # before Accelerate warns of it
    precision = precision_here(recipe.precision)
    return Accelerator(mixed_precision=precision, log_with=recipe.track, project_dir=recipe.output)


def make_execution(recipe: Recipe) -> Execution:
    """How the recipe's networks are run."""
    layout = torch.channels_last if recipe.channels_last else torch.preserve_format
    return Execution(layout, recipe.sync_bn, recipe.compile, recipe.checkpoint_activations)


def make_task(recipe: Recipe, data: ImageDataset) -> Task:
    """What networks are trained for on such data."""
    if not recipe.data.has_maps:
        return ImageClassification(data.classes)
    pixels = recipe.segmentation
    if recipe.data.saliency:
        return SalientObjectDetection(pixels.auxiliary_weight)
    return SemanticSegmentation(pixels.auxiliary_weight, View(pixels.window, pixels.overlap, pixels.flip))
