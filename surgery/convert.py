"""Carry out a plan on a model that has weights."""

import warnings
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer

from surgery.calibration import calibrate as fit
from surgery.core.checked_model import check_model
from surgery.core.errors import ConversionWarning, NoSitesError, is_whole
from surgery.core.extras import check_extra
from surgery.graph.skeleton import copied
from surgery.planning.plan import Plan, plan
from surgery.planning.registry import method_named
from surgery.transforms.optimizers import named_parameters, repair, warn_of_stale

Batches = Iterable[Any] | Tensor


def convert(
    model: nn.Module,
    method: Any = None,
    *,
    inplace: bool = False,
    optimizers: Iterable[Optimizer] = (),
    strict: bool = False,
    match: bool | str | None = None,
    calibrate: Batches | None = None,
    images: Batches | int | None = 1024,
    **arguments: Any,
) -> nn.Module:
    """Convert a model; the result reuses its weights and stays the class it was.

    Args:
        model: any nn.Module with weights; left as it is unless ``inplace``.
        method: a registered method's name (``python -m surgery methods`` lists them), its config, or a plan that was
            made of this model (:func:`surgery.plan`).
        optimizers: with ``inplace``, optimizers of the model: they go on with the parameters that it then has. One that
            is not named here and holds parameters that are gone is warned of.
        strict: raise instead of warning where there is nothing to convert.
        match: first bring the channels into an order that suits the sites (:func:`surgery.match`), which changes
            nothing of what the model computes, but the order of the channels that ``forward_features`` and
            ``forward_intermediates`` return; ``"inside"`` leaves that. Default: True where it is calibrated and the
            method knows such an order.
        calibrate: unlabelled images, as for :func:`surgery.calibrate`: fit what follows the sites to what the original
            computes there. Most of the accuracy that surgery takes comes back so, in seconds to minutes.
        images: batches for a method that looks at images (default: those of ``calibrate``), and then all of
            ``calibrate`` are drawn; or, as a number, how many are drawn from ``calibrate`` at most (None takes all).
        **arguments: as for :func:`surgery.plan`.

    Returns:
        A converted copy, or the model itself with ``inplace=True``. What its user should know (``Plan.notes``) comes as
        a ConversionWarning.

    Raises:
        NoSitesError: nothing to convert, and ``strict``.
        MissingPackageError: ``calibrate`` is given, and what it needs is not installed.
        ValueError, TypeError, TraceError: as :func:`surgery.plan`; ValueError for a model on the meta device, for
            optimizers of a model that is copied, and for one that cannot be repaired (LBFGS).
    """
    check_model(model, weights=True)
    check_match(match)
    optimizers = _checked_optimizers(model, optimizers, inplace)
    if calibrate is not None:
        check_extra("calibrate", "calibrate=")
    calibrate, evidence, count = _batches(calibrate, images)
    planned = _planned(model, method, evidence, arguments)
    if not planned.decisions:
        _nothing(model, planned, strict)
        return model if inplace else copied(model)
    for note in planned.notes:
        warnings.warn(note, ConversionWarning, stacklevel=2)
    before = named_parameters(model)
    if not inplace:
        model = copied(model)
    reorder = getattr(method_named(planned.method), "match", None)
    if reorder is not None and (match or (match is None and calibrate is not None)):
        reorder(planned, model, match == "inside")
    original = None if calibrate is None else copied(model)
    kept = planned.carry_out(model)
    if calibrate is not None and original is not None:
        fit(model, original, calibrate, kept=kept, images=count)
    if inplace:
        for optimizer in optimizers:
            repair(optimizer, before, model)
        warn_of_stale(before, model, stacklevel=3)
    return model


def match(
    model: nn.Module, method: Any = None, *, inside: bool = False, inplace: bool = False, **arguments: Any
) -> nn.Module:
    """The same network with its channels in an order that suits the sites of a conversion.

    To be converted with the same arguments; :func:`surgery.convert` does both where it calibrates. A stream stays as
    it is where the graph analysis does not understand all that reads or writes it. The model's outputs keep their
    order; the feature maps of timm's ``forward_features`` and ``forward_intermediates`` have their channels in another
    one, unless ``inside``.

    Args:
        model, method, **arguments: as for :func:`surgery.convert`.
        inside: leave the order of all that ``forward_features`` and ``forward_intermediates`` return. In a ResNet those
            are the streams that squeezes read, so only the squeezes' own outputs are ordered then, which recovers less
            (``docs/recovery.md``).
        inplace: reorder the model itself.

    Returns:
        A model that computes what ``model`` does, but for rounding; for a method that knows no such order, as it was.

    Raises:
        ValueError, TypeError, TraceError: as :func:`surgery.plan`.
    """
    check_model(model, weights=True)
    result = model if inplace else copied(model)
    planned = _planned(model, method, None, arguments)
    reorder = getattr(method_named(planned.method), "match", None)
    if reorder is not None:
        reorder(planned, result, inside)
    return result


def _planned(model: nn.Module, method: Any, images: Batches | None, arguments: dict[str, Any]) -> Plan:
    """The plan itself, where it was made before."""
    if not isinstance(method, Plan):
        return plan(model, method, images=images, **arguments)
    if arguments:
        raise ValueError(f"{', '.join(arguments)}: the plan was made with such arguments; with it none can be")
    return method


def check_match(value: object) -> None:
    """Raise ValueError for a ``match`` argument that is not True, False, None or ``inside``."""
    if not (value is None or isinstance(value, bool) or value == "inside"):
        raise ValueError(f"match={value!r}: True, False, None or 'inside' is needed")


def _checked_optimizers(model: nn.Module, optimizers: Iterable[Optimizer], inplace: bool) -> tuple[Optimizer, ...]:
    if not isinstance(optimizers, Iterable):
        raise TypeError(f"optimizers={type(optimizers).__name__}(…): a sequence of optimizers is needed, (optimizer,)")
    listed, own = tuple(optimizers), {id(parameter) for parameter in model.parameters()}
    for optimizer in listed:
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"optimizers has a {type(optimizer).__name__}: torch optimizers are needed")
        if isinstance(optimizer, LBFGS):
            raise ValueError("optimizers has an LBFGS, which keeps one state for all parameters: make a new one after")
        if not any(id(parameter) in own for group in optimizer.param_groups for parameter in group["params"]):
            raise ValueError(
                f"optimizers has {type(optimizer).__name__}, which holds no parameter of {type(model).__name__}: it is "
                "another model's"
            )
    if listed and not inplace:
        raise ValueError("optimizers= goes with inplace=True: a converted copy has parameters of its own")
    return listed


def _batches(
    calibrate: Batches | None, images: Batches | int | None
) -> tuple[Batches | None, Batches | None, int | None]:
    """Batches to calibrate with, batches to plan with, and how many images are drawn of the former at most."""
    if images is None or is_whole(images):
        if calibrate is not None and iter(calibrate) is calibrate:  # it can be read once, and is read twice
            calibrate = list(calibrate if images is None else _first(calibrate, images))  # type: ignore[arg-type]
        return calibrate, calibrate, images  # type: ignore[return-value]
    return calibrate, images, None  # type: ignore[return-value]


def _first(batches: Iterable[Any], images: int) -> Iterable[Any]:
    """So many batches of an iterator as hold that many images."""
    drawn = 0
    for batch in batches:
        yield batch
        drawn += len(batch[0] if isinstance(batch, tuple | list) else batch)
        if drawn >= images:
            return


def _nothing(model: nn.Module, planned: Plan, strict: bool) -> None:
    mode = f" in mode {planned.mode!r}" if planned.mode else ""
    message = f"{type(model).__name__} has no site for method {planned.method!r}{mode}: {planned.notes[0]}"
    if strict:
        raise NoSitesError(f"{message}\n{planned}")
    warnings.warn(message, ConversionWarning, stacklevel=3)
