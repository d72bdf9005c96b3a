"""What a user asks of ``plan`` and ``convert``, validated once."""

import fnmatch
import numbers
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from surgery.core.errors import check_choice
from surgery.planning.importance import CRITERIA

MODES = ("squeeze", "downscale", "prune")
PROJECTIONS = ("residual", "all", "none")
HEADS = ("keep", "pool")
Zeta = int | Mapping[str, int] | None


@dataclass(frozen=True)
class Request:
    """Validated arguments of ``plan``; see there for their meaning.

    Raises:
        ValueError, TypeError: naming the argument, its value and what would be accepted.
    """

    zeta: Zeta = None
    mode: str = "squeeze"
    include: str | Iterable[str] = ()
    exclude: str | Iterable[str] = ()
    insert: str | Iterable[str] = ()
    projections: str = "residual"
    equal_width: bool | None = None
    head: str = "keep"
    importance: str = "l1"

    def __post_init__(self) -> None:
        check_choice("mode", self.mode, MODES)
        check_choice("projections", self.projections, PROJECTIONS)
        check_choice("head", self.head, HEADS)
        check_choice("importance", self.importance, CRITERIA)
        if isinstance(self.zeta, Mapping):
            if not self.zeta:
                raise ValueError("zeta={}: name patterns with their zeta, such as {'layer3': 8}, are needed")
            for pattern, value in self.zeta.items():
                if not isinstance(pattern, str):
                    raise TypeError(f"zeta has the key {pattern!r}: name patterns (str) are needed")
                check_zeta(f"zeta[{pattern!r}]", value)
        elif self.zeta is not None:
            check_zeta("zeta", self.zeta)
        plain = {k: int(v) for k, v in self.zeta.items()} if isinstance(self.zeta, Mapping) else self.zeta
        object.__setattr__(self, "zeta", int(plain) if isinstance(plain, numbers.Integral) else plain)
        for name in ("include", "exclude", "insert"):
            object.__setattr__(self, name, _patterns(name, getattr(self, name)))
        if self.insert and self.mode == "squeeze":
            raise ValueError(f"insert={list(self.insert)!r} goes with mode='downscale' or mode='prune', not 'squeeze'")

    def zeta_of(self, name: str, default: int | None = None) -> int | None:
        """The zeta asked for at a site: of several patterns that match, the longest decides."""
        if not isinstance(self.zeta, Mapping):
            return default if self.zeta is None else self.zeta
        hits = [pattern for pattern in self.zeta if matches(name, pattern)]
        return self.zeta[max(hits, key=len)] if hits else default

    def wants(self, name: str) -> str:
        """Why a site is not wanted, or ""."""
        if self.include and not any(matches(name, pattern) for pattern in self.include):
            return "not in include="
        if any(matches(name, pattern) for pattern in self.exclude):
            return "in exclude="
        return ""

    def check_patterns(self, names: Sequence[str]) -> None:
        """Raise ValueError for a pattern that matches none of the candidate names."""
        patterns = [("zeta", p) for p in self.zeta] if isinstance(self.zeta, Mapping) else []
        patterns += [(kind, p) for kind in ("include", "exclude", "insert") for p in getattr(self, kind)]
        for kind, pattern in patterns:
            if not any(matches(name, pattern) for name in names):
                shown = ", ".join(names[:6]) + (f", … ({len(names)} in all)" if len(names) > 6 else "")
                raise ValueError(f"{kind} pattern {pattern!r} matches no site; sites are: {shown or 'none'}")


def check_zeta(name: str, value: object) -> None:
    """Raise unless ``value`` is an int >= 1 (TypeError for another type, ValueError for another number)."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name}={value!r}: a whole number >= 1 is needed, not {type(value).__name__}")
    if not isinstance(value, numbers.Integral) or value < 1:
        raise ValueError(f"{name}={value!r}: a whole number >= 1 is needed")


def matches(name: str, pattern: str) -> bool:
    """Whether a module name equals a shell-style pattern or lies below a module that does (``layer3``)."""
    return fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(name, pattern + ".*")


def _patterns(name: str, value: str | Iterable[str] | None) -> tuple[str, ...]:
    if value is not None and not isinstance(value, Iterable):
        raise TypeError(f"{name}={value!r}: name patterns such as 'layer3' or ['*.conv1'] are needed")
    items = (value,) if isinstance(value, str) else tuple(value or ())
    for item in items:
        if not isinstance(item, str) or not item:
            raise TypeError(f"{name} has {item!r}: name patterns such as 'layer3' or '*.conv1' are needed")
    return items
