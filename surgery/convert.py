"""Carry out a plan on a model that has weights."""

import warnings
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from surgery.calibration import calibrate as fit
from surgery.core.checked_model import check_model
from surgery.core.errors import ConversionWarning, NoSitesError
from surgery.core.extras import check_extra
from surgery.graph.skeleton import copied
from surgery.methods.pix.matching import check_match, match_for
from surgery.planning.plan import Plan, plan
from surgery.transforms.edit import apply


def convert(
    model: nn.Module,
    method: str = "pix",
    *,
    inplace: bool = False,
    strict: bool = False,
    match: bool | str | None = None,
    calibrate: Iterable[Any] | Tensor | None = None,
    images: int | None = 1024,
    **arguments: Any,
) -> nn.Module:
    """Convert a model; the result reuses its weights and stays the class it was.

    Args:
        model: any nn.Module with weights; left as it is unless ``inplace``.
        method: a registered method: ``pix``, ``squeeze-conv``.
        strict: raise instead of warning where there is nothing to convert.
        match: first bring the channels into an order that suits the sites (:func:`surgery.match`), which changes
            nothing of what the model computes, but the order of the channels that ``forward_features`` and
            ``forward_intermediates`` return; ``"inside"`` leaves that. Default: True where it is calibrated.
        calibrate: unlabelled images, as for :func:`surgery.calibrate`: fit what follows the sites to what the original
            computes there. Most of the accuracy that surgery takes comes back so, in seconds to minutes.
        images: at most so many are drawn from ``calibrate``; None takes all.
        **arguments: as for :func:`surgery.plan`.

    Returns:
        A converted copy, or the model itself with ``inplace=True``. What its user should know (``Plan.notes``) comes as
        a ConversionWarning.

    Raises:
        NoSitesError: nothing to convert, and ``strict``.
        MissingPackageError: ``calibrate`` is given, and what it needs is not installed.
        ValueError, TypeError, TraceError: as :func:`surgery.plan`; ValueError for a model on the meta device.
    """
    check_model(model, weights=True)
    check_match(match)
    if calibrate is not None:
        check_extra("calibrate", "calibrate=")
    decided = plan(model, method, **arguments)
    if not decided.edits:
        message = (
            f"{type(model).__name__} has no site for method {method!r} in mode {decided.mode!r}: {decided.notes[0]}"
        )
        if strict:
            raise NoSitesError(f"{message}\n{decided}")
        warnings.warn(message, ConversionWarning, stacklevel=2)
        return model if inplace else copied(model)
    for note in decided.notes:
        warnings.warn(note, ConversionWarning, stacklevel=2)
    if not inplace:
        model = copied(model)
    if match or (match is None and calibrate is not None):
        match_for(decided, model, inside=match == "inside")
    if calibrate is None:
        return carry_out(decided, model)
    original, kept = copied(model), decided.kept_outputs(model)
    converted = carry_out(decided, model)
    fit(converted, original, calibrate, kept=kept, images=images)
    return converted


def carry_out(decided: Plan, model: nn.Module) -> nn.Module:
    """Apply a plan in place to the model (or a copy of the model) that it was made for."""
    keep = None if decided.narrowing is None else decided.narrowing.choose(model, decided.importance)
    return apply(model, decided.edits, keep=keep)
