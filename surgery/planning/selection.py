"""Which sites of a model a user wants, by name patterns."""

import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Selection:
    """Name patterns, shell style; ``layer3`` also means what lies below it.

    Attributes:
        include: only sites that one of these matches; empty for all.
        exclude: not these.

    Raises:
        TypeError: naming the argument, its value and what would be accepted.
    """

    include: str | Iterable[str] = ()
    exclude: str | Iterable[str] = ()

    def __post_init__(self) -> None:
        for name in ("include", "exclude"):
            object.__setattr__(self, name, patterns(name, getattr(self, name)))

    def unwanted(self, name: str) -> str:
        """Why a site is not wanted, or ""."""
        if self.include and not any(matches(name, pattern) for pattern in self.include):
            return "not in include="
        if any(matches(name, pattern) for pattern in self.exclude):
            return "in exclude="
        return ""

    def check(self, names: Sequence[str], **further: Iterable[str]) -> None:
        """Raise ValueError for a pattern that matches none of the candidate names.

        Args:
            **further: patterns of a method's own options, by the option's name.
        """
        for kind, items in {**further, "include": self.include, "exclude": self.exclude}.items():
            for pattern in items:
                if not any(matches(name, pattern) for name in names):
                    shown = ", ".join(names[:6]) + (f", … ({len(names)} in all)" if len(names) > 6 else "")
                    raise ValueError(f"{kind} pattern {pattern!r} matches no site; sites are: {shown or 'none'}")


def matches(name: str, pattern: str) -> bool:
    """Whether a module name equals a shell-style pattern or lies below a module that does (``layer3``)."""
    return fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(name, pattern + ".*")


def patterns(name: str, value: str | Iterable[str] | None) -> tuple[str, ...]:
    """Name patterns as a tuple; raises TypeError for what are none."""
    if value is not None and not isinstance(value, Iterable):
        raise TypeError(f"{name}={value!r}: name patterns such as 'layer3' or ['*.conv1'] are needed")
    items = (value,) if isinstance(value, str) else tuple(value or ())
    for item in items:
        if not isinstance(item, str) or not item:
            raise TypeError(f"{name} has {item!r}: name patterns such as 'layer3' or '*.conv1' are needed")
    return items


def by_longest_pattern(name: str, values: Mapping[str, float]) -> float | None:
    """The value of the longest of the patterns that match a name; None where none does."""
    matching = [pattern for pattern in values if matches(name, pattern)]
    return values[max(matching, key=len)] if matching else None
