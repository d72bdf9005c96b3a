"""Carry out a plan on a model that has weights."""

import copy
import warnings
from typing import Any

from torch import nn

from surgery.checked_model import check_model
from surgery.edit import apply
from surgery.errors import NoSitesError
from surgery.plan import Plan, plan


def convert(
    model: nn.Module,
    method: str = "pix",
    *,
    inplace: bool = False,
    strict: bool = False,
    **arguments: Any,
) -> nn.Module:
    """Convert a model; the result reuses its weights and stays the class it was.

    Args:
        model: any nn.Module with weights; left as it is unless ``inplace``.
        method: a registered method: ``pix``, ``squeeze-conv``.
        strict: raise instead of warning where there is nothing to convert.
        **arguments: as for :func:`surgery.plan`.

    Returns:
        A converted copy, or the model itself with ``inplace=True``.

    Raises:
        NoSitesError: nothing to convert, and ``strict``.
        ValueError, TypeError, TraceError: as :func:`surgery.plan`; ValueError for a model on the meta device.
    """
    check_model(model, weights=True)
    decided = plan(model, method, **arguments)
    if not decided.edits:
        message = (
            f"{type(model).__name__} has no site for method {method!r} in mode {decided.mode!r}: nothing is converted"
        )
        if strict:
            raise NoSitesError(f"{message}\n{decided}")
        warnings.warn(message, stacklevel=2)
    return carry_out(decided, model if inplace else _copied(model))


def _copied(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except RuntimeError as error:
        raise ValueError(f"{type(model).__name__} cannot be copied ({error}): pass inplace=True") from error


def carry_out(decided: Plan, model: nn.Module) -> nn.Module:
    """Apply a plan in place to the model (or a copy of the model) that it was made for."""
    keep = None if decided.narrowing is None else decided.narrowing.choose(model, decided.importance)
    return apply(model, decided.edits, keep=keep)
