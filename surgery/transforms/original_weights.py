"""Loading the original network's state dict into the converted one: what surgery removed is left out, and said so."""

import sys
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from surgery.transforms.history import history


def accept_original_weights(model: nn.Module) -> None:
    """Let ``model.load_state_dict(original.state_dict())`` work, strictly, for a model that has a history.

    The hook is a plain function that reads the history of whatever module it is called for, so copies and pickles of
    the model, and modules that hold it, load in the same way.
    """
    hooks = model._load_state_dict_pre_hooks.values()
    if not any(getattr(hook, "hook", None) is leave_out_removed for hook in hooks):
        model.register_load_state_dict_pre_hook(leave_out_removed)


def leave_out_removed(module: nn.Module, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
    """Take from a state dict exactly the entries of modules that surgery removed, with a warning that says how many.

    Where shapes differ because surgery changed widths, say so besides what torch says.
    """
    removed = {name: _entries(state_dict, f"{prefix}{name}.") for name in _removed(module)}
    removed = {name: entries for name, entries in removed.items() if entries}
    left_out = [entry for entries in removed.values() for entry in entries]
    for entry in left_out:
        del state_dict[entry]
    if left_out:
        shown = ", ".join([*list(removed)[:3], *(["…"] if len(removed) > 3 else [])])
        order = any(transform.type == "reorder" for transform in history(module))
        reordered = "; channels are in the original's order again, not in the one they were matched to" if order else ""
        warnings.warn(
            f"the state dict is that of the original: its {len(left_out)} entries of modules that surgery removed "
            f"({shown}) are left out{reordered}",
            stacklevel=_level_outside_torch(),
        )
    errors: list[str] = arguments[-1]
    errors += _misfits(module, state_dict, prefix)


def _level_outside_torch() -> int:
    """The ``stacklevel`` by which the caller's warning points to the line that called torch."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and _is_of_torch(str(frame.f_globals.get("__name__"))):
        level, frame = level + 1, frame.f_back
    return level


def _is_of_torch(module: str) -> bool:
    return module == __name__ or f"{module}.".startswith("torch.")


def _entries(state_dict: Mapping[str, Any], prefix: str) -> list[str]:
    return [entry for entry in state_dict if entry.startswith(prefix)]


def _removed(module: nn.Module) -> Iterator[str]:
    """Names of modules that surgery swapped for nn.Identity, and that are one still."""
    for transform in history(module):
        for name in transform.removed():
            try:
                present = module.get_submodule(name)
            except AttributeError:
                continue
            if isinstance(present, nn.Identity):
                yield name


def _misfits(module: nn.Module, state_dict: Mapping[str, Any], prefix: str) -> Iterator[str]:
    """Why shapes differ, as one sentence, where surgery is the reason."""
    own = {f"{prefix}{name}": tensor for name, tensor in module.state_dict(keep_vars=True).items()}
    differing = [
        name
        for name, tensor in state_dict.items()
        if isinstance(tensor, Tensor) and isinstance(own.get(name), Tensor) and tensor.shape != own[name].shape
    ]
    resized = {name for transform in history(module) for name in transform.resized()}
    caused = [name for name in differing if name.removeprefix(prefix).rpartition(".")[0] in resized]
    if caused:
        first = caused[0]
        yield (
            f"surgery changed the widths of {len(resized)} layers, so {len(caused)} tensors of the original do "
            f"not fit, such as {first}: {tuple(state_dict[first].shape)} there, {tuple(own[first].shape)} here. "
            "Load this state dict into the original network and convert that with the same arguments"
        )
