"""Why a model is none that surgery works on: what its forward takes, and over how many dimensions it convolves."""

import inspect
from typing import Any

import torch
from torch import nn

WRAP = "surgery works on models that take one batch of images (N, C, H, W); wrap it in a module that takes just that"
_OF_DICTS = ("keys", "items", "get", "pop")


class DictNeededError(TypeError):
    """A forward uses a tensor as a dict."""


def check_use(function: Any, arguments: tuple[Any, ...]) -> None:
    """Raise DictNeededError for ``image["name"]`` and ``image.values()``: torch's errors say other things."""
    name = getattr(function, "__name__", "")
    if name == "__getitem__" and isinstance(arguments[1], str):
        raise DictNeededError(f"a tensor is indexed with {arguments[1]!r}")
    if name == "values" and isinstance(arguments[0], torch.Tensor) and arguments[0].layout == torch.strided:
        raise DictNeededError("the values() of a tensor are asked for")


def unsuitable(model: nn.Module) -> str:
    """The reason for which no size of image would do, as one sentence, or ""."""
    first = next((item for item in model.named_modules() if isinstance(item[1], nn.modules.conv._ConvNd)), None)
    if first is not None and isinstance(first[1], nn.Conv1d | nn.Conv3d):
        kind = type(first[1]).__name__
        shape = "(N, C, L)" if isinstance(first[1], nn.Conv1d) else "(N, C, T, H, W)"
        return (
            f"{type(model).__name__} reads {shape}: its first convolution, {first[0] or 'itself'}, is a {kind}; "
            "surgery works on networks of images (N, C, H, W), on their Conv2d layers"
        )
    wanted = _inputs(model)
    if len(wanted) != 1:
        named = f" ({', '.join(wanted)})" if wanted else ""
        return f"its forward takes {len(wanted)} inputs{named}: {WRAP}"
    return ""


def advice(model: nn.Module, error: Exception) -> str:
    """What to do about a forward that failed with ``error`` on an image, as a sentence."""
    reason = unsuitable(model)
    if not reason and _takes_a_dict(model, error):
        reason = f"its forward takes a dict: {WRAP}"
    if reason:
        return f"{reason[0].upper()}{reason[1:]}."
    return "Pass input_size=(channels, height, width) that the model accepts."


def _inputs(model: nn.Module) -> list[str]:
    """Names of what the forward must be given; where it takes any number of things, of one."""
    parameters = inspect.signature(model.forward).parameters.values()
    needed = [p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    return needed or [p.name for p in parameters if p.kind != p.VAR_KEYWORD][:1]


def _takes_a_dict(model: nn.Module, error: Exception) -> bool:
    if isinstance(error, DictNeededError):
        return True
    name = getattr(error, "name", None)
    return isinstance(error, AttributeError) and name in _OF_DICTS and "Tensor" in str(error)
