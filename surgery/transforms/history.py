"""What was done to a model: carried with it, and asked wherever something depends on it."""

from torch import nn

from surgery.transforms.transform import Transform

HISTORY = "surgery_history"


def history(model: nn.Module) -> tuple[Transform, ...]:
    """The transforms that made this model what it is, in order."""
    return getattr(model, HISTORY, ())


def remember(model: nn.Module, *transforms: Transform) -> None:
    """Write into a model's history what was done; takes time in proportion to all of it, so many go in one call."""
    setattr(model, HISTORY, (*history(model), *(done.as_stored() for done in transforms)))


def changed_modules(model: nn.Module) -> tuple[str, ...]:
    """Names of the modules that compute something else since surgery, each once, in the order of the model."""
    changed = {name for transform in history(model) for name in transform.changed()}
    return tuple(name for name, _ in model.named_modules() if name in changed)


def original_modules(model: nn.Module) -> tuple[str, ...]:
    """Names of the modules that surgery changed or replaced and that the network had before any of it, in order."""
    names: dict[str, None] = {}
    added: set[str] = set()
    for transform in history(model):
        names |= dict.fromkeys(name for name in transform.changed() if name not in added)
        added.update(transform.added())
    return tuple(names)
