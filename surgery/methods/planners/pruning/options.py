"""How much of a network a user wants pruned, validated once; every pruning method has these options."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from surgery.core.errors import check_choice, is_whole
from surgery.methods.planners.pruning.selection import RULES


@dataclass(frozen=True)
class PruningOptions:
    """How much of a network goes, and by which rule.

    Attributes:
        keep: share of every axis's channels that stays; or shares by name pattern, and then every other axis keeps
            all its channels, unless ``macs`` or ``params`` is there for them.
        macs, params: share of the original's multiply-accumulates or parameters, met within one per cent if it can be.
        rule: "uniform", the same share of every axis; "global", what is worth least anywhere.
        normalise: with "global", compare scores divided by the mean of their axis.
        round_to: widths become multiples of this.
        least: channels that stay in every axis.
        least_share: share of its channels that stays in every axis.
        steps: how often the scores are computed; each time an equal part goes, and the next scores are of what is left.

    Raises:
        ValueError, TypeError: naming the argument, its value and what would be accepted.
    """

    keep: float | Mapping[str, float] | None = None
    macs: float | None = None
    params: float | None = None
    rule: str = "uniform"
    normalise: bool = True
    round_to: int = 1
    least: int = 1
    least_share: float = 0.0
    steps: int = 1

    def __post_init__(self) -> None:
        check_choice("rule", self.rule, RULES)
        for name in ("round_to", "least", "steps"):
            if not is_whole(getattr(self, name), 1):
                raise ValueError(f"{name}={getattr(self, name)!r}: a whole number >= 1 is needed")
        for name in ("macs", "params"):
            if getattr(self, name) is not None:
                _check_share(name, getattr(self, name))
        if isinstance(self.keep, Mapping):
            if not self.keep:
                raise ValueError("keep={}: name patterns with their shares, such as {'layer3': 0.5}, are needed")
            for pattern, share in self.keep.items():
                if not isinstance(pattern, str) or not pattern:
                    raise TypeError(f"keep has the key {pattern!r}: name patterns (str) are needed")
                _check_share(f"keep[{pattern!r}]", share)
        elif self.keep is not None:
            _check_share("keep", self.keep)
        if not isinstance(self.least_share, int | float) or not 0 <= self.least_share < 1:
            raise ValueError(f"least_share={self.least_share!r}: a share from 0 up to, not including, 1 is needed")
        self._check_target()

    def _check_target(self) -> None:
        targets = [name for name in ("macs", "params", "threshold") if getattr(self, name, None) is not None]
        if self.keep is not None and not isinstance(self.keep, Mapping):
            targets.append("keep")
        if len(targets) > 1:
            raise ValueError(f"{' and '.join(targets)} are set: one of them says how much stays")
        if not targets and self.keep is None:
            raise ValueError("how much stays is not said: macs=0.7, params=0.7 or keep=0.7, for example")

    @property
    def shares(self) -> dict[str, float]:
        """The shares by name pattern."""
        return dict(self.keep) if isinstance(self.keep, Mapping) else {}


def _check_share(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name}={value!r}: a share, such as 0.7, is needed, not {type(value).__name__}")
    if not math.isfinite(value) or not 0 < value <= 1:
        raise ValueError(f"{name}={value!r}: a share above 0 and up to 1 is needed")
