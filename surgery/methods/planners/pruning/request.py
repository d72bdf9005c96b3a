"""What a user asks of channel pruning: how much goes, and where."""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass

from surgery.methods.planners.pruning.options import PruningOptions
from surgery.planning.selection import Selection, patterns


@dataclass(frozen=True)
class PruningRequest(PruningOptions):
    """Options of a pruning and a selection of layers.

    Attributes:
        threshold: channels that score less go, however many that are, in place of a share.
        include, exclude: patterns of the names of layers that write channels.
    """

    threshold: float | None = None
    include: str | Iterable[str] = ()
    exclude: str | Iterable[str] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("include", "exclude"):
            object.__setattr__(self, name, patterns(name, getattr(self, name)))

    @classmethod
    def of(cls, options: PruningOptions, selection: Selection) -> "PruningRequest":
        """What a method's options and a selection ask for."""
        asked = {field.name: getattr(options, field.name) for field in dataclasses.fields(PruningOptions)}
        threshold = getattr(options, "threshold", None)
        return cls(**asked, threshold=threshold, include=selection.include, exclude=selection.exclude)
