"""Modules of a model by their names, with errors that say what was expected there."""

from typing import Any

from torch import nn

from surgery.core.errors import SurgeryError


def submodule(model: nn.Module, name: str, kind: type[nn.Module] = nn.Module) -> Any:
    """``model.get_submodule``.

    Raises:
        SurgeryError: there is none of that name, or it is of another kind.
    """
    try:
        module = model.get_submodule(name)
    except AttributeError:
        raise SurgeryError(f"{type(model).__name__} has no module {name!r}: not the model this plan is for") from None
    if not isinstance(module, kind):
        raise SurgeryError(f"{name!r} is a {type(module).__name__}; the plan was made for a {kind.__name__}")
    return module


def checked_conv(model: nn.Module, name: str, channels: tuple[int, int]) -> nn.Conv2d:
    """A convolution, its widths (in, out) compared with those it was planned for; raises SurgeryError."""
    conv: nn.Conv2d = submodule(model, name, nn.Conv2d)
    if (conv.in_channels, conv.out_channels) != channels:
        actual = f"{conv.in_channels} → {conv.out_channels}"
        raise SurgeryError(f"{name!r} maps {actual} channels; the plan says {channels[0]} → {channels[1]}")
    return conv


def put(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put a module where another is, in the same training mode."""
    module.train(submodule(model, name).training)
    model.set_submodule(name, module)
