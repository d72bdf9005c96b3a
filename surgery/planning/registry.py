"""The seam for methods: one file or folder in ``surgery.methods``, one registration, and nothing else changes."""

import dataclasses
import functools
import importlib
import pkgutil
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Protocol, TypeVar

from surgery.core.errors import check_choice
from surgery.core.registering import check_name_free
from surgery.graph import ModelGraph
from surgery.planning import evidence as evidence_module
from surgery.planning.decision import Decision
from surgery.planning.evidence import Evidence
from surgery.planning.selection import Selection
from surgery.planning.sites import Skipped


@dataclasses.dataclass
class Proposal:
    """A method's answer.

    Attributes:
        decisions: in order.
        skipped: candidates passed over.
        notes: what a reader should know before the plan is carried out, a sentence each.
    """

    decisions: list[Decision]
    skipped: list[Skipped]
    notes: tuple[str, ...] = ()


class Method(Protocol):
    """What a method is to the rest of the package.

    ``Config`` is a frozen dataclass of JSON values whose ``__post_init__`` raises ValueError on what cannot be. It may
    have a field ``mode``. Besides what is below a method may define ``notes(graph, config, decisions, skipped)`` and
    ``match(plan, model, inside)``; see :func:`notes_of` and :func:`surgery.match`.

    Attributes:
        name: by which users call it.
        Config: its options.
        evidence: what :meth:`plan` looks at besides the graph.
        changes: what it changes, in a few words, for ``python -m surgery methods``.
        where: where it may go.
    """

    name: ClassVar[str]
    Config: ClassVar[Any]
    evidence: ClassVar[evidence_module.Kind]
    changes: ClassVar[str]
    where: ClassVar[str]

    def plan(self, graph: ModelGraph, selection: Selection, config: Any, evidence: Evidence) -> Proposal:
        """What the method would do, in order, and what it passes over. ``config`` is of class ``Config``."""


M = TypeVar("M", bound=type)
_METHODS: dict[str, Method] = {}


def register(method: M) -> M:
    """Class decorator: make a method known by its ``name``.

    Raises:
        ValueError: the name is taken by another class, or an attribute of :class:`Method` is missing.
    """
    missing = [name for name in (*Method.__annotations__, "plan") if not hasattr(method, name)]
    if missing:
        raise ValueError(f"method {method.__name__} has no {', '.join(missing)}")
    made: Method = method()
    check_choice("evidence", made.evidence, evidence_module.KINDS)
    earlier = _METHODS.get(made.name)
    check_name_free(f"method {made.name!r}", method, earlier and type(earlier))
    _METHODS[made.name] = made
    return method


def method_named(name: str) -> Method:
    """The registered method; raises ValueError that lists what there is."""
    discover()
    check_choice("method", name, methods())
    return _METHODS[name]


def methods() -> dict[str, Method]:
    """All registered methods by name, in the order of their names, whatever was imported first."""
    discover()
    return dict(sorted(_METHODS.items()))


def configured(method: Any, options: dict[str, Any]) -> tuple[Method, Any]:
    """A method and its config, from a name and keyword options, or from a config object alone.

    Raises:
        ValueError: there is no such method or option; the message lists what there is.
        TypeError: ``method`` is neither a name nor a config.
    """
    if isinstance(method, str):
        chosen = method_named(method)
        return chosen, configure(chosen, options)
    discover()
    for chosen in _METHODS.values():
        if type(method) is chosen.Config:
            if options:
                raise ValueError(f"{', '.join(options)}: belong into the config {type(method).__name__}(…)")
            return chosen, method
    raise TypeError(f"method={method!r:.80}: a method's name ({', '.join(_METHODS)}) or its config is needed")


def configure(method: Method, options: dict[str, Any]) -> Any:
    """The method's config from keyword options; raises ValueError that lists the options there are."""
    accepted = [field.name for field in dataclasses.fields(method.Config)]
    for name in options:
        if name not in accepted:
            check_choice(f"option of method {method.name!r}", name, accepted)
    return method.Config(**options)


def notes_of(
    method: Method, graph: ModelGraph, config: Any, decisions: Sequence[Decision], skipped: Sequence[Skipped]
) -> tuple[str, ...]:
    """What a reader should know before a plan is carried out, a sentence each."""
    own: Callable[..., tuple[str, ...]] | None = getattr(method, "notes", None)
    if own is not None:
        return own(graph, config, decisions, skipped)
    return () if decisions else ("there is nothing to convert; to try: another method",)


@functools.cache
def discover() -> None:
    """Import this package's methods, which register themselves; others register when they are imported."""
    for module in pkgutil.iter_modules(importlib.import_module("surgery.methods").__path__):
        importlib.import_module(f"surgery.methods.{module.name}")
