"""Decide new channel widths of a model, and by which channels they are kept."""

import functools
from dataclasses import dataclass, field

from torch import nn

from surgery.graph.channels import Channels, Group
from surgery.methods.planners.importance import CRITERIA, strongest
from surgery.transforms.modules_by_name import submodule
from surgery.transforms.narrow import Narrow
from surgery.transforms.slicing import Keep, keep_of_sides

Sides = tuple[list[int] | None, list[int] | None]
Widths = dict[str, list[int | None]]


@dataclass
class Narrowing:
    """New widths of channel groups; ``refused`` says why a group keeps its own."""

    channels: Channels
    width: dict[Group, int] = field(default_factory=dict)

    def refuse(self, conv: str) -> str:
        """Why the output of a convolution cannot get narrower, or ""."""
        return self.channels.writes[conv][0].root().frozen

    def shrink(self, conv: str, factor: float) -> int:
        """Divide the output width of a convolution by ``factor`` (to the nearest allowed count); returns the width."""
        group = self.channels.writes[conv][0].root()
        if group not in self.width:
            blocks = max(1, round(group.width / factor / group.multiple))
            self.width[group] = min(group.width, blocks * group.multiple)
        return self.width[group]

    def _touched(self, segments: list[Group]) -> bool:
        return any(group.root() in self.width for group in segments)

    def widths(self) -> Widths:
        """New (in, out) widths of every module that changes; None where a side stays."""
        result: Widths = {}
        for name in dict.fromkeys([*self.channels.reads, *self.channels.writes]):
            sides: list[int | None] = []
            for segments in (self.channels.reads.get(name, []), self.channels.writes.get(name, [])):
                changed = self._touched(segments)
                sides.append(sum(self.width.get(g.root(), g.width) for g in segments) if changed else None)
            if any(side is not None for side in sides):
                result[name] = sides
        return result

    def transform(self, importance: str) -> Narrow:
        """The narrowing as a transform, which keeps the most important channels of the model it is applied to."""
        return Narrow(self.widths(), chooser=functools.partial(self.choose, importance=importance))

    def choose(self, model: nn.Module, importance: str) -> Keep:
        """Indices that each changed module keeps, by the importance of the filters that write them."""
        chosen = {
            group: strongest(
                CRITERIA[importance]([submodule(model, name).weight for name in group.producers]), width, group.multiple
            )
            for group, width in self.width.items()
        }
        return keep_of_sides(model, {name: self.kept(name, chosen) for name in self.widths()})

    def kept(self, name: str, chosen: dict[Group, list[int]]) -> Sides:
        """Indices (in, out) that a module keeps where groups keep the ``chosen`` ones; a group left out keeps all."""
        sides: list[list[int] | None] = []
        for segments in (self.channels.reads.get(name, []), self.channels.writes.get(name, [])):
            if not self._touched(segments):
                sides.append(None)
                continue
            kept: list[int] = []
            offset = 0
            for group in segments:
                kept += [offset + i for i in chosen.get(group.root(), range(group.width))]
                offset += group.width
            sides.append(kept)
        return sides[0], sides[1]
