"""What a user asks of ``auto``."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from surgery.core.errors import check_choice, is_whole
from surgery.core.run_setting import DTYPES, MODES, Setting
from surgery.planning.registry import methods
from surgery.planning.selection import patterns

BUDGETS = ("macs", "latency", "params")


@dataclass(frozen=True)
class AutoConfig:
    """A budget, and what may be mixed to meet it.

    Attributes:
        macs, params, latency: share of the original's multiply-accumulates, parameters or measured time that is left;
            one of them.
        methods: names of the methods that may be mixed; default: those that are meant to be.
        engine, threads, batch, dtype: that ``latency`` is measured with (:class:`surgery.core.run_setting.Setting`).
        count: images that take part at most.
        round_to: with ``latency``, widths become multiples of this; a processor computes odd ones no faster.
        finalists: mixtures, and plans of single methods, that are calibrated and compared before one is chosen.
        file: where measurements are kept, so that what was interrupted goes on; None keeps none.
        front: a picture (.png, .svg, .pdf) of the Pareto front, to be written with its JSON beside it.

    Raises:
        ValueError, TypeError: naming the option, its value and what would be accepted.
    """

    macs: float | None = None
    latency: float | None = None
    params: float | None = None
    methods: str | Iterable[str] = ()
    engine: str = "eager"
    threads: int | None = None
    batch: int = 1
    dtype: str = "float32"
    count: int = 256
    round_to: int | None = None
    finalists: int = 7
    file: str | None = None
    front: str | None = None

    def __post_init__(self) -> None:
        asked = [name for name in BUDGETS if getattr(self, name) is not None]
        if len(asked) != 1:
            said = f"{' and '.join(asked)} are set" if asked else "how much stays is not said"
            raise ValueError(f"{said}: one of macs=0.77, latency=0.8 and params=0.7, for example, is needed")
        _check_share(asked[0], getattr(self, asked[0]))
        object.__setattr__(self, "methods", patterns("methods", self.methods))
        check_choice("engine", self.engine, [mode for mode in MODES if mode not in ("cudagraph", "optimized")])
        check_choice("dtype", self.dtype, DTYPES)
        for name, least in (("count", 32), ("finalists", 1), ("batch", 1)):
            if not is_whole(getattr(self, name), least):
                raise ValueError(f"{name}={getattr(self, name)!r}: a whole number >= {least} is needed")
        for name in ("round_to", "threads"):
            if getattr(self, name) is not None and not is_whole(getattr(self, name), 1):
                raise ValueError(f"{name}={getattr(self, name)!r}: a whole number >= 1, or None, is needed")

    @property
    def budget(self) -> str:
        """``macs``, ``latency`` or ``params``."""
        return next(name for name in BUDGETS if getattr(self, name) is not None)

    @property
    def share(self) -> float:
        """Of the budget, how much is left."""
        return float(getattr(self, self.budget))

    @property
    def multiple(self) -> int:
        """Of what widths are multiples."""
        return self.round_to or (8 if self.budget == "latency" else 1)

    @property
    def setting(self) -> Setting:
        """How times are measured."""
        return Setting(self.batch, self.engine, self.dtype, threads=self.threads)

    def check_methods(self) -> None:
        """Raise ValueError for a name that no method has, or that of this one."""
        for chosen in self.methods:
            check_choice("methods", chosen, [name for name in methods() if name != "auto"])


def _check_share(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name}={value!r}: a share, such as 0.77, is needed, not {type(value).__name__}")
    if not math.isfinite(value) or not 0 < value <= 1:
        raise ValueError(f"{name}={value!r}: a share above 0 and up to 1 is needed")
