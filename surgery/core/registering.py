"""What registries do with a name that is there already."""

from typing import Any


def check_name_free(what: str, new: Any, earlier: Any, explain: str = "") -> None:
    """Raise ValueError unless ``new`` may be registered under a name that ``earlier`` has, where that is not None.

    The same definition may, which replaces the earlier one: a notebook's cell is run again, a module reloaded.

    Args:
        what: the name and what it is of, for the message.
        new, earlier: classes or functions, or tuples of these and None.
        explain: who has the name, for the message.
    """
    if earlier is not None and not same_definition(new, earlier):
        raise ValueError(f"{what} is registered already{explain}")


def same_definition(one: Any, other: Any) -> bool:
    """Whether two classes or functions, or tuples of these and None, have the same module and qualified name."""
    return _identity(one) == _identity(other)


def _identity(definition: Any) -> Any:
    if isinstance(definition, tuple):
        return tuple(_identity(part) for part in definition)
    qualified = getattr(definition, "__qualname__", None)
    return definition if qualified is None else (definition.__module__, qualified)
