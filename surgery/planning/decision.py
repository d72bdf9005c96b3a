"""What a plan consists of."""

from dataclasses import dataclass
from typing import Literal

from surgery.transforms.transform import Transform


@dataclass(frozen=True)
class PlanRow:
    """A line of a plan, for its reader; no part of a file.

    Attributes:
        site: qualified module name.
        role: what the site is.
        channels: widths that say what happens there: (in, out) of a squeeze, (before, after) of a narrowed layer.
        note: in a few words.
        verb: what happens to the site.
    """

    site: str
    role: str = ""
    channels: tuple[int, int] = (0, 0)
    note: str = ""
    verb: Literal["converted", "narrowed"] = "converted"


@dataclass(frozen=True)
class Decision:
    """The unit of rehearsal: it is carried out, or dropped, whole.

    Attributes:
        name: by which others require it; the site's, where it is about one.
        transforms: in order.
        rows: what the plan prints of it: a row each for what it does at sites.
        requires: names of decisions without which it makes no sense.
        note: printed below the table.
    """

    name: str
    transforms: tuple[Transform, ...]
    rows: tuple[PlanRow, ...] = ()
    requires: tuple[str, ...] = ()
    note: str = ""
