"""Weights of a plain checkpoint file, as timm, torchvision and most training scripts write them, for a network."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
from timm.models import load_state_dict
from torch import Tensor, nn

from surgery.checkpoint.source import Source, build_on_meta
from surgery.core.errors import SourceError
from surgery.training.recipe_errors import RecipeError

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".tar")
WRITTEN_BY_SURGERY = "surgery"  # in the metadata of a safetensors file
COUNTER = "num_batches_tracked"  # which BatchNorms of old files lack


@dataclass(frozen=True)
class Loaded:
    """Names of a network's tensors that are as they were initialised, since the file's are of other classes."""

    new: tuple[str, ...]


def load_weights(network: nn.Module, source: Source, classes: int, path: str) -> Loaded:
    """Load a file into ``network``; only what depends on the number of classes may be missing or of another shape.

    Args:
        network: of ``source``, with ``classes`` outputs.

    Raises:
        FileNotFoundError: there is no such file.
        RecipeError: it is damaged, would run code, or holds the weights of another network; names tensors.
    """
    tensors, own = read_tensors(path), network.state_dict()
    of_classes = class_tensors(source, classes)
    different = {name for name in own.keys() & tensors.keys() if own[name].shape != tensors[name].shape}
    missing = {name for name in own.keys() - tensors.keys() if not name.endswith(COUNTER)}
    foreign = {name for name in tensors.keys() - own.keys() if not name.endswith(COUNTER)}
    wrong = sorted((different | missing) - of_classes)
    if wrong or foreign:
        raise RecipeError(_other_network(path, source, own, tensors, wrong, sorted(foreign)))
    loadable = {name: tensor for name, tensor in tensors.items() if name in own and name not in different}
    network.load_state_dict(loadable, strict=False)
    return Loaded(tuple(name for name in own if name in different | missing))


def _other_network(
    path: str, source: Source, own: dict[str, Any], tensors: dict[str, Tensor], wrong: list[str], foreign: list[str]
) -> str:
    parts = [
        f"{name} is {tuple(tensors[name].shape)}, {tuple(own[name].shape)} is needed"
        if name in tensors
        else f"{name} is missing"
        for name in wrong[:3]
    ]
    parts += [f"{name} is of no use" for name in foreign[:3]]
    return (
        f"model.weights={path} does not hold the weights of {source}: {'; '.join(parts)} ({len(wrong) + len(foreign)} "
        "such); model.name and model.kwargs must say what the file is of"
    )


def class_tensors(source: Source, classes: int) -> set[str]:
    """Names of a network's tensors whose shape depends on ``num_classes``: those of its head, or heads."""
    try:
        shapes = [
            {
                name: tensor.shape
                for name, tensor in build_on_meta(_source_with_classes(source, count)).state_dict().items()
            }
            for count in (classes, classes + 1)
        ]
    except SourceError:  # a builder without num_classes: no tensor is known to be of the head
        return set()
    return {name for name, shape in shapes[0].items() if shapes[1].get(name) != shape}


def _source_with_classes(source: Source, classes: int) -> Source:
    return Source(source.builder, source.name, {**source.kwargs, "num_classes": classes})


def read_tensors(path: str) -> dict[str, Tensor]:
    """The tensors of a file by name, without what wrappers put around them (``state_dict``, ``module.``).

    Nothing is unpickled but tensors and plain values.

    Raises:
        FileNotFoundError: there is no such file.
        RecipeError: it holds no tensors by name, or is damaged.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"model.weights={path}: there is no such file")
    if Path(path).suffix.lower() not in SUFFIXES:
        raise RecipeError(f"model.weights={path}: a file of weights ({', '.join(SUFFIXES)}) is needed")
    _check_unconverted(path)
    try:
        tensors = load_state_dict(path, use_ema=True, weights_only=True)
    except Exception as error:  # a damaged file makes readers (zip, tar, pickle, torch, timm) raise anything
        raise _unreadable(path, error) from None
    if not tensors or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        other = next((name for name, value in tensors.items() if not isinstance(value, Tensor)), "nothing")
        raise RecipeError(f"model.weights={path} holds {other!r} where tensors by name are needed (a state dict)")
    return tensors


def _check_unconverted(path: str) -> None:
    """Raise RecipeError for a file of surgery.save with a converted network: its tensors alone do not make one."""
    if not path.lower().endswith(".safetensors"):
        return
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            manifest = (file.metadata() or {}).get(WRITTEN_BY_SURGERY, "")
    except (safetensors.SafetensorError, ValueError, OSError) as error:
        raise _unreadable(path, error) from None
    if manifest and _has_surgery(path, manifest):
        raise RecipeError(f"model.weights={path} holds a converted network: model.checkpoint is the key for it")


def _has_surgery(path: str, manifest: str) -> bool:
    """Whether a manifest, of any schema, lists changes; raises RecipeError where it is none."""
    try:
        content = json.loads(manifest)
        return bool(content["edits"] if content["schema"] == 1 else content["transforms"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _unreadable(path, error) from None


def _unreadable(path: str, error: Exception) -> RecipeError:
    module, name = type(error).__module__.partition(".")[0].lstrip("_"), type(error).__name__
    kind = name if module == "builtins" else f"{module}.{name}"  # such as struct.error
    reason = (str(error).strip() or "no reason given").splitlines()[0]
    return RecipeError(f"model.weights={path} is damaged, or cannot be read as plain weights: {kind}: {reason}")
