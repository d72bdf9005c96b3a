"""Optimizers after surgery in place: they hold parameters that the model no longer has, and lack its new ones."""

import gc
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torch.optim import LBFGS, Optimizer

from surgery.core.errors import ConversionWarning

Parameters = Mapping[str, nn.Parameter]
_WRAPPED = (
    "optimizer",
    "base_optimizer",
    "_base_optimizer",
)  # where Accelerate's, SAM and timm's Lookahead keep theirs


def named_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """A model's parameters by all their names: of a tied one there are several."""
    return dict(model.named_parameters(remove_duplicate=False))


def repair(optimizer: Optimizer, before: Parameters, model: nn.Module) -> None:
    """Let an optimizer go on with the parameters that a model has after surgery in place.

    In its groups, a parameter is followed by its name: what stands there now takes its place, in the same group; what
    is gone leaves. New parameters go into the group of the nearest parameter of their kind (matrices and filters, or
    vectors such as biases), and nowhere where that one is in no group. Parameters of other models stay. State
    (momentum, moments) stays with the parameters that kept their values; the others start anew.

    Args:
        optimizer: it is changed in place; what it wraps is repaired with it.
        before: the model's parameters by name as they were (:func:`named_parameters`).
        model: after surgery.

    Raises:
        ValueError: the optimizer keeps one state for all parameters together (LBFGS), which cannot be followed.
    """
    after = named_parameters(model)
    for inner in _with_wrapped(optimizer):
        new = _groups_after(inner, before, after)
        if isinstance(inner, LBFGS) and _differ(inner, new):
            raise ValueError(
                "LBFGS keeps one state for all of its parameters together, which surgery made wrong: make a new one, "
                "of the converted model's parameters"
            )
        _move_state(inner, before, after)
        for group, entries in zip(inner.param_groups, new, strict=True):
            group["params"][:] = [entry.parameter for entry in entries]
            if "param_names" in group:
                group["param_names"][:] = [entry.name for entry in entries]


def is_stale(optimizer: Optimizer, before: Parameters, model: nn.Module) -> bool:
    """Whether :func:`repair` would change something: there are parameters that are gone, or new ones are lacking."""
    after = named_parameters(model)
    return any(_differ(inner, _groups_after(inner, before, after)) for inner in _with_wrapped(optimizer))


def stale_optimizers(before: Parameters, model: nn.Module) -> list[Optimizer]:
    """Every optimizer of this process that is stale (:func:`is_stale`)."""
    return [optimizer for optimizer in _optimizers() if is_stale(optimizer, before, model)]


def lost_hooks(before: Parameters, model: nn.Module) -> list[str]:
    """Names of the parameters that are gone and had hooks, such as those of an optimizer that steps in the backward."""
    remaining = _ids(named_parameters(model))
    return [name for name, parameter in before.items() if id(parameter) not in remaining and _hooked(parameter)]


def _hooked(parameter: nn.Parameter) -> bool:
    return bool(parameter._post_accumulate_grad_hooks or parameter._backward_hooks)


def warn_of_stale(before: Parameters, model: nn.Module, *, stacklevel: int = 1) -> None:
    """Give ConversionWarnings for the optimizers, and the hooks of parameters, that surgery in place made stale.

    Args:
        before: the model's parameters by name as they were.
        model: after surgery.
        stacklevel: 1 points at the caller.
    """
    kind = type(model).__name__
    stale = {type(optimizer).__name__ for optimizer in stale_optimizers(before, model)}
    if stale:
        gc.collect()  # one that is in nobody's hands, but not cleared away yet, is no reason to warn
        stale = {type(optimizer).__name__ for optimizer in stale_optimizers(before, model)}
    if stale:
        warnings.warn(
            f"{', '.join(sorted(stale))} would go on with parameters that {kind} no longer has, or without new ones, "
            "since surgery in place changed them: pass optimizers=(optimizer,), or make it after the conversion",
            ConversionWarning,
            stacklevel=stacklevel + 1,
        )
    hooked = lost_hooks(before, model)
    if hooked:
        warnings.warn(
            f"{len(hooked)} parameters that {kind} no longer has had hooks ({', '.join(hooked[:3])}"
            f"{', …' if len(hooked) > 3 else ''}): register them on the new parameters",
            ConversionWarning,
            stacklevel=stacklevel + 1,
        )


@dataclass(frozen=True)
class _Entry:
    """A parameter in a group, under the name that the group has for it."""

    parameter: nn.Parameter
    name: str


def _with_wrapped(optimizer: Optimizer) -> Iterator[Optimizer]:
    """The optimizer and those inside it, the innermost first."""
    for name in _WRAPPED:
        inner = vars(optimizer).get(name)
        if isinstance(inner, Optimizer):
            yield from _with_wrapped(inner)
    yield optimizer


def _optimizers() -> list[Optimizer]:
    """Every optimizer that there is in this process, but for those whose making failed."""
    # type(), not isinstance: some objects run code when they are asked for their class
    optimizers = [thing for thing in gc.get_objects() if issubclass(type(thing), Optimizer)]
    return [optimizer for optimizer in optimizers if hasattr(optimizer, "param_groups")]


def _differ(optimizer: Optimizer, groups: list[list[_Entry]]) -> bool:
    now = [[id(parameter) for parameter in group["params"]] for group in optimizer.param_groups]
    return now != [[id(entry.parameter) for entry in entries] for entries in groups]


def _groups_after(optimizer: Optimizer, before: Parameters, after: Parameters) -> list[list[_Entry]]:
    """What each group is to hold."""
    names = _names(before)
    taken = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]} & _ids(after)
    groups: list[list[_Entry]] = []
    group_of: dict[int, int] = {}
    for number, group in enumerate(optimizer.param_groups):
        entries: list[_Entry] = []
        labels = group.get("param_names") or [""] * len(group["params"])
        for parameter, label in zip(group["params"], labels, strict=True):
            group_of[id(parameter)] = number
            if id(parameter) in taken or id(parameter) not in names:
                entries.append(_Entry(parameter, label))
                continue
            successors = {id(after[name]): after[name] for name in names[id(parameter)] if name in after}
            fresh = [successor for key, successor in successors.items() if key not in taken and key not in names]
            entries += [_Entry(successor, label) for successor in fresh]
            taken |= {id(successor) for successor in fresh}
        groups.append(entries)
    for name, parameter in after.items():
        if id(parameter) not in taken and id(parameter) not in names:
            number_of_relative = group_of.get(id(_nearest(name, parameter, before)))
            if number_of_relative is not None:
                groups[number_of_relative].append(_Entry(parameter, name))
                taken.add(id(parameter))
    return groups


def _move_state(optimizer: Optimizer, before: Parameters, after: Parameters) -> None:
    """State goes from each parameter that is gone to its successor of the same value, if there is one."""
    remaining = _ids(after)
    for name, parameter in before.items():
        if id(parameter) in remaining or parameter not in optimizer.state:
            continue
        state = optimizer.state.pop(parameter)
        successor = after.get(name)
        if successor is not None and _same(parameter, successor):
            optimizer.state[successor] = state


def _same(one: nn.Parameter, other: nn.Parameter) -> bool:
    alike = (one.shape, one.dtype, one.device) == (other.shape, other.dtype, other.device)
    return alike and torch.equal(one, other)


def _nearest(name: str, parameter: nn.Parameter, before: Parameters) -> nn.Parameter | None:
    """Of the parameters there were, the one of the same kind whose name shares most of its path with ``name``."""
    alike = [other for other, candidate in before.items() if (candidate.ndim > 1) == (parameter.ndim > 1)]
    nearest = max(alike or before, key=lambda other: _shared(name, other), default=None)
    return None if nearest is None else before[nearest]


def _shared(name: str, other: str) -> int:
    """How many parts of their paths two names begin with in common."""
    parts = list(zip(name.split("."), other.split("."), strict=False))
    return next((count for count, (a, b) in enumerate(parts) if a != b), len(parts))


def _names(parameters: Parameters) -> dict[int, list[str]]:
    names: dict[int, list[str]] = {}
    for name, parameter in parameters.items():
        names.setdefault(id(parameter), []).append(name)
    return names


def _ids(parameters: Parameters) -> set[int]:
    return {id(parameter) for parameter in parameters.values()}
