"""Options of methods that squeeze channels, in the place of a squeeze convolution or in front of a spatial one."""

import dataclasses
import numbers
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from surgery.core.errors import check_choice
from surgery.methods.planners.importance import CRITERIA
from surgery.planning.selection import Selection, by_longest_pattern, patterns

MODES = ("squeeze", "downscale", "prune")
PROJECTIONS = ("residual", "all", "none")
HEADS = ("keep", "pool")
Zeta = int | Mapping[str, int] | None


@dataclass(frozen=True)
class InsertionOptions:
    """Where a squeeze is inserted, and how narrow.

    Attributes:
        zeta: ratio of each inserted module (``prune``: 1 by default), a whole number >= 1, or a dict of name patterns.
        mode: ``downscale`` or ``prune``.
        insert: name patterns of the spatial convolutions to insert before.
        head: ``pool`` swaps VGG's 4096-wide head for global average pooling and one linear layer.

    Raises:
        ValueError, TypeError: naming the option, its value and what would be accepted.
    """

    zeta: Zeta = None
    mode: str = "downscale"
    insert: str | Iterable[str] = ()
    head: str = "keep"

    def __post_init__(self) -> None:
        check_choice("mode", self.mode, self.modes())
        check_choice("head", self.head, HEADS)
        object.__setattr__(self, "zeta", _checked_zeta(self.zeta))
        object.__setattr__(self, "insert", patterns("insert", self.insert))
        if self.insert and self.mode == "squeeze":
            raise ValueError(f"insert={list(self.insert)!r} goes with mode='downscale' or mode='prune', not 'squeeze'")
        if self.head != "keep" and self.mode == "squeeze":
            raise ValueError("head='pool' goes with mode='downscale' or mode='prune'")

    @classmethod
    def modes(cls) -> tuple[str, ...]:
        """Modes that there are."""
        return MODES[1:]

    def zeta_of(self, name: str, default: int | None = None) -> int | None:
        """The zeta asked for at a site: of several patterns that match, the longest decides."""
        if not isinstance(self.zeta, Mapping):
            return default if self.zeta is None else self.zeta
        zeta = by_longest_pattern(name, self.zeta)
        return default if zeta is None else int(zeta)

    def check_patterns(self, selection: Selection, names: list[str]) -> None:
        """Raise ValueError for a pattern that matches none of the candidate names."""
        selection.check(names, zeta=tuple(self.zeta) if isinstance(self.zeta, Mapping) else (), insert=self.insert)


@dataclass(frozen=True)
class SqueezeOptions(InsertionOptions):
    """The same for methods that also take a squeeze convolution's place.

    Attributes:
        zeta: in mode ``squeeze`` compared with the network's own ratio: width of its residual stream ÷ width of a
            block's squeeze (4 for every ResNet). Every site keeps its own C_in / C_out; a zeta above the network's
            narrows all in proportion, which ``Plan.notes`` says, a smaller one changes nothing.
        mode: ``squeeze``, ``downscale`` or ``prune``.
        projections: of inverted bottlenecks: ``residual`` (those that end in a residual sum), ``all`` or ``none``.
        equal_width: convert bottleneck heads that keep the width; default: only in a network that narrows elsewhere.
        importance: criterion by which a narrowing keeps filters (``l1``).
    """

    mode: str = "squeeze"
    projections: str = "residual"
    equal_width: bool | None = None
    importance: str = "l1"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("projections", self.projections, PROJECTIONS)
        check_choice("importance", self.importance, CRITERIA)
        if self.equal_width is not None and not isinstance(self.equal_width, bool):
            raise TypeError(f"equal_width={self.equal_width!r}: True, False or None is needed")

    @classmethod
    def modes(cls) -> tuple[str, ...]:
        return MODES

    def without_zeta(self) -> "SqueezeOptions":
        """The same options with every site's own ratio."""
        return dataclasses.replace(self, zeta=None)


def _checked_zeta(zeta: Zeta) -> Zeta:
    if isinstance(zeta, Mapping):
        if not zeta:
            raise ValueError("zeta={}: name patterns with their zeta, such as {'layer3': 8}, are needed")
        for pattern, value in zeta.items():
            if not isinstance(pattern, str):
                raise TypeError(f"zeta has the key {pattern!r}: name patterns (str) are needed")
            _check_zeta(f"zeta[{pattern!r}]", value)
        return {pattern: int(value) for pattern, value in zeta.items()}
    if zeta is not None:
        _check_zeta("zeta", zeta)
        return int(zeta)
    return None


def _check_zeta(name: str, value: object) -> None:
    """Raise unless ``value`` is an int >= 1 (TypeError for another type, ValueError for another number)."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name}={value!r}: a whole number >= 1 is needed, not {type(value).__name__}")
    if not isinstance(value, numbers.Integral) or value < 1:
        raise ValueError(f"{name}={value!r}: a whole number >= 1 is needed")
