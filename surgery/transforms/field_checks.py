"""Checks of a transform's fields, for values from code and from files alike: each returns the value in one form."""

from typing import Any

from surgery.core.errors import is_whole

LARGEST = 2**17  # of widths that a file may name


def module_name(field: str, value: Any) -> str:
    """A module's qualified name."""
    if not isinstance(value, str) or not value:
        raise ValueError(f"{field}={value!r:.80}: a module's name is needed")
    return value


def module_names(field: str, value: Any) -> tuple[str, ...]:
    """Names of modules, as a tuple."""
    if not isinstance(value, list | tuple):
        raise ValueError(f"{field}={value!r:.80}: a list of module names is needed")
    return tuple(module_name(field, name) for name in value)


def width(field: str, value: Any) -> int:
    """A number of channels."""
    if not is_whole(value, 1, LARGEST):
        raise ValueError(f"{field}={value!r:.80}: a whole number >= 1 is needed")
    return int(value)


def channels(field: str, value: Any) -> tuple[int, int]:
    """The widths (in, out) of a convolution."""
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise ValueError(f"{field}={value!r:.80}: two whole numbers, [in, out], are needed")
    return width(field, value[0]), width(field, value[1])
