"""The seam for methods: one file in this package, one registration, and nothing else changes."""

import dataclasses
import functools
import importlib
import pkgutil
from typing import Any, ClassVar, Protocol

from torch import nn

from surgery.core.errors import check_choice
from surgery.graph import ModelGraph
from surgery.planning.request import Request
from surgery.planning.sites import Skipped
from surgery.transforms.edit import Edit


class Method(Protocol):
    """What a method is to the rest of the package.

    ``Config`` is a frozen dataclass of JSON values whose ``__post_init__`` raises ValueError on what cannot be.
    ``forms``, which may be absent, says which arguments its edits have, so that a file's are checked before anything is
    built (:mod:`surgery.transforms.edit_arguments`).
    """

    name: ClassVar[str]
    modes: ClassVar[tuple[str, ...]]
    Config: ClassVar[Any]

    def plan(self, graph: ModelGraph, request: Request, config: Any) -> "Proposal":
        """Which edits the method would make, in order, and what it passes over."""

    def apply(self, model: nn.Module, edit: Edit) -> None:
        """Carry out one edit in place; a pure function of the module and the arguments."""


@dataclasses.dataclass
class Proposal:
    """A method's answer: edits in order, candidates passed over, and the narrowing that must come first, if any.

    ``own_ratio`` is that of the network's blocks, where sites keep their own: a larger zeta narrows.
    """

    edits: list[Edit]
    skipped: list[Skipped]
    narrowing: Any = None
    own_ratio: int | None = None


_METHODS: dict[str, Method] = {}


def register(method: type) -> type:
    """Class decorator: make a method known by its ``name``; raises ValueError if the name is taken."""
    if method.name in _METHODS:  # type: ignore[attr-defined]
        raise ValueError(f"method {method.name!r} is registered already")  # type: ignore[attr-defined]
    _METHODS[method.name] = method()  # type: ignore[attr-defined]
    return method


def method_named(name: str) -> Method:
    """The registered method; raises ValueError that lists what there is."""
    _discover()
    check_choice("method", name, _METHODS)
    return _METHODS[name]


def methods() -> dict[str, Method]:
    """All registered methods by name."""
    _discover()
    return dict(_METHODS)


def configure(method: Method, options: dict[str, Any]) -> Any:
    """The method's config from keyword options; raises ValueError that lists the options there are."""
    known = [field.name for field in dataclasses.fields(method.Config)]
    for name in options:
        if name not in known:
            check_choice(f"option of method {method.name!r}", name, known)
    return method.Config(**options)


@functools.cache
def _discover() -> None:
    """Import this package's methods, which register themselves; others register when they are imported."""
    for module in pkgutil.iter_modules(importlib.import_module("surgery.methods").__path__):
        importlib.import_module(f"surgery.methods.{module.name}")
