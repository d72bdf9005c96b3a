"""The exceptions of this package and the checks that raise them, each naming the thing, its value and what would do."""

import difflib
import math
from collections.abc import Iterable
from typing import Any


class SurgeryError(Exception):
    """Base class of the errors that are about a model or a file rather than an argument."""


class NoSitesError(SurgeryError):
    """``strict=True`` and the model has no site for the method."""


class TraceError(SurgeryError):
    """The model's forward could not be followed."""


class CheckpointError(SurgeryError):
    """A file is damaged, foreign, of a later schema, or does not fit the model that its manifest names."""


class SourceError(SurgeryError):
    """A model cannot be rebuilt from what is known of how it was made."""


class MissingPackageError(SurgeryError, ImportError):
    """A package that an extra installs is missing; the message names both."""


class UserModuleError(SurgeryError):
    """A module of the user's (``--import``, ``imports``) cannot be imported."""


class ConversionWarning(UserWarning):
    """A conversion does something that its user may not expect (:attr:`surgery.Plan.notes`)."""


class ExportWarning(UserWarning):
    """A file is right, and slower than it could be in some engine."""


class ExportError(SurgeryError):
    """A model cannot be written in another runtime's format, or the file computes something else."""


def is_whole(value: Any, least: float = -math.inf, most: float = math.inf, kind: type[Any] = int) -> bool:
    """Whether a value is a whole number, not a bool, within limits.

    Args:
        kind: ``int``, as JSON has it, or ``numbers.Integral``, which takes NumPy's too.
    """
    return isinstance(value, kind) and not isinstance(value, bool) and bool(least <= value <= most)


def described(error: Exception) -> str:
    """An exception's message, after its kind where the message alone may say nothing (``KeyError: 'a'``)."""
    kind = "" if isinstance(error, SurgeryError | TypeError | ValueError | RuntimeError) else f"{type(error).__name__} "
    return f"{kind}{error!s:.1000}"


def check_choice(name: str, value: object, choices: Iterable[str]) -> None:
    """Raise ValueError unless ``value`` is one of ``choices``."""
    accepted = list(choices)
    if value not in accepted:
        close = difflib.get_close_matches(str(value), accepted, 1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"{name}={value!r}: one of {', '.join(map(repr, accepted))} is needed{hint}")
