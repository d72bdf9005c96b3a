"""What surgery changed in a model, as its history says: never asked of a module's class."""

from collections.abc import Iterable

from torch import nn

from surgery.transforms.history import changed_modules, history
from surgery.transforms.reorder import Reorder


def is_converted(model: nn.Module) -> bool:
    """Whether surgery changed the model's structure; an order of channels (``surgery.match``) is none."""
    return any(not isinstance(transform, Reorder) for transform in history(model))


def added_modules(model: nn.Module) -> tuple[str, ...]:
    """Names of the modules that the original has not, in the order of the model; of nested ones the outermost."""
    added = {name for transform in history(model) for name in transform.added()}
    present = (name for name, _ in model.named_modules(remove_duplicate=False) if name in added)
    return tuple(name for name in present if not is_within(name, added))


def changed_layers(model: nn.Module) -> tuple[str, ...]:
    """Names of what was replaced, inserted or resized; not of the layers that something was inserted in front of.

    Such a layer holds what was inserted, and gives what the original's layer gives.
    """
    added = added_modules(model)
    holders = {name for name in changed_modules(model) if any(is_within(inner, {name}) for inner in added)}
    return (*added, *(name for name in changed_modules(model) if name not in {*added, *holders}))


def is_within(name: str, others: Iterable[str]) -> bool:
    """Whether a module's qualified name lies below one of the others."""
    return any(name.startswith(f"{other}.") for other in others)
