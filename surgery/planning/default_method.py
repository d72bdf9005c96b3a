"""Which method is meant where none is named."""

from surgery.planning.registry import methods


def default_method() -> str:
    """The name of the registered method that says of itself, by an attribute ``default``, that it is meant then."""
    return next(name for name, method in methods().items() if getattr(method, "default", False))
