"""What the arguments of an edit may be: a table for each method, and what carrying them out costs.

A method declares its forms beside itself (``forms`` of the class); those of edits that belong to no method are here.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from surgery.checkpoint.build_budget import CALL, LARGEST, Budget
from surgery.core.errors import is_whole
from surgery.transforms.edit import MATCH, NARROW, Edit, submodule

Check = Callable[[Any], bool]
PER_CHANNEL = 16  # units for an index in a Python list
PER_TRACED_MODULE = 10 * CALL  # a block is traced twice, in train and in eval mode
MOST_CALLS = 16
FURTHEST_CALL = 1_000


@dataclass(frozen=True)
class Kind:
    """A kind of value: whether one is of it, what to say where one is not, and what carrying it out costs a model."""

    check: Check
    needed: str
    cost: Callable[[nn.Module, Any], int] = lambda model, value: 0


@dataclass(frozen=True)
class Form:
    """One set of arguments that a method's edits may have.

    Attributes:
        required: kinds by name; all of them must be there.
        options: a dataclass whose fields may be there; making one checks their values.
    """

    required: dict[str, Kind] = field(default_factory=dict)
    options: type | None = None

    def fits(self, names: Iterable[str]) -> bool:
        """Whether arguments of these names are of this form."""
        return set(names) - self._optional() == set(self.required)

    def check(self, arguments: dict[str, Any]) -> None:
        """Raise ValueError for a value that cannot be."""
        for name, kind in self.required.items():
            if not kind.check(arguments[name]):
                raise ValueError(f"edit argument {name}={arguments[name]!r:.80}: {kind.needed} is needed")
        if self.options is not None:
            try:
                self.options(**{name: arguments[name] for name in arguments if name not in self.required})
            except TypeError as error:
                raise ValueError(str(error)) from error

    def _optional(self) -> set[str]:
        return set() if self.options is None else {option.name for option in dataclasses.fields(self.options)}

    def __str__(self) -> str:
        optional = sorted(self._optional())
        return ", ".join(self.required) + (f" (and {', '.join(optional)})" if optional else "")


def is_name(value: Any) -> bool:
    """Whether a value can be a module's qualified name."""
    return isinstance(value, str) and bool(value)


def _is_erasure(value: Any) -> bool:
    if value == []:
        return True
    if not isinstance(value, list) or len(value) != 3 or not isinstance(value[2], list):
        return False
    block, conv, calls = value
    return isinstance(block, str) and is_name(conv) and 0 < len(calls) <= MOST_CALLS and all(map(_is_call, calls))


def _is_call(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and is_whole(value[0], 1, FURTHEST_CALL) and is_name(value[1])


def _are_widths(value: Any) -> bool:
    sides = value.values() if isinstance(value, dict) else [None]
    return isinstance(value, dict) and all(
        isinstance(side, list) and len(side) == 2 and all(n is None or is_whole(n, 1, LARGEST) for n in side)
        for side in sides
    )


def _cost_of_widths(_: nn.Module, value: Any) -> int:
    sides = [n for side in value.values() for n in side if n is not None]
    return PER_CHANNEL * sum(sides) + CALL * len(sides)


def _cost_of_erasing(model: nn.Module, value: Any) -> int:
    return PER_TRACED_MODULE * sum(1 for _ in submodule(model, value[0]).modules()) if value else 0


WIDTH = Kind(lambda value: is_whole(value, 1, LARGEST), "a whole number >= 1", lambda _, value: PER_CHANNEL * value)
TRUE = Kind(lambda value: value is True, "true")
NAMES = Kind(
    lambda value: isinstance(value, list) and all(map(is_name, value)),
    "a list of module names",
    lambda _, value: CALL * len(value),
)
ERASURE = Kind(_is_erasure, "[] or [block, convolution, [[n, name], …]]", _cost_of_erasing)
_WIDTHS = Kind(_are_widths, "module → [in, out], each a whole number >= 1 or null,", _cost_of_widths)
_ORDER = Kind(lambda value: isinstance(value, str) and len(value) <= 128, "a digest")
FORMS: dict[str, tuple[Form, ...]] = {
    NARROW: (Form({"widths": _WIDTHS}),),
    MATCH: (Form({"order": _ORDER}),),
}


def check_arguments(edit: Edit) -> None:
    """Raise ValueError unless an edit names a method that there is, with arguments of one of its forms."""
    forms = _forms(edit)
    if not forms:
        return  # a method from elsewhere that declares none: it checks what it is given
    form = next((form for form in forms if form.fits(edit.arguments)), None)
    if form is None:
        accepted = "; or ".join(map(str, forms))
        raise ValueError(
            f"edit of {edit.method!r} has the arguments {list(edit.arguments)!r:.200}; it takes {accepted}"
        )
    form.check(edit.arguments)


def affordable(model: nn.Module, edits: Iterable[Edit], budget: Budget) -> Iterator[Edit]:
    """The edits, one by one; before each, what it costs besides calls of operators is taken off the budget.

    Raises:
        BudgetError: they are more work than a network of this size can need.
    """
    for edit in edits:
        form = next((form for form in _forms(edit) if form.fits(edit.arguments)), Form())
        budget.spend(CALL + sum(kind.cost(model, edit.arguments[name]) for name, kind in form.required.items()))
        yield edit


def _forms(edit: Edit) -> tuple[Form, ...]:
    from surgery.planning.registry import method_named

    return FORMS[edit.method] if edit.method in FORMS else getattr(method_named(edit.method), "forms", ())
