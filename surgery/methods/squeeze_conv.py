"""``squeeze-conv``: a real 1×1 convolution + BatchNorm + ReLU in front of spatial convolutions (VGG-16-1×1).

The baseline that FACS Table 4 compares with; converting the result in a mode that replaces squeezes turns those
convolutions into another kind of squeeze.
"""

import itertools
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from surgery.graph import ModelGraph
from surgery.methods.planners.insertion import plan_insertion
from surgery.methods.planners.squeeze_notes import squeeze_notes
from surgery.methods.planners.squeeze_options import InsertionOptions
from surgery.planning.decision import Decision
from surgery.planning.evidence import Evidence, Kind
from surgery.planning.registry import Proposal, register
from surgery.planning.selection import Selection
from surgery.planning.sites import Skipped
from surgery.transforms.edit_migrations import Json, inserted, migrates_edit, only_argument, pooled_head
from surgery.transforms.layer_kinds import Insertion, LayerKind, register_layer
from surgery.transforms.subsets import subset_bounds


@dataclass(frozen=True)
class SqueezeConvOptions:
    """No options."""


@dataclass(frozen=True)
class SqueezeConvConfig(InsertionOptions):
    """Where it goes; see there."""


def _inserted(channels: int, squeezed: int, options: SqueezeConvOptions) -> Insertion:
    """A convolution that gives the means of subsets of its input."""
    squeeze = nn.Conv2d(channels, squeezed, 1, bias=False)
    with torch.no_grad():
        squeeze.weight.zero_()
        for row, (low, high) in enumerate(itertools.pairwise(subset_bounds(channels, squeezed))):
            squeeze.weight[row, low:high] = 1 / (high - low)
    parts = OrderedDict(conv=squeeze, norm=nn.BatchNorm2d(squeezed), act=nn.ReLU(inplace=True))
    return Insertion(nn.Sequential(parts))


register_layer(LayerKind("squeeze-conv", SqueezeConvOptions, inserted=_inserted))


@migrates_edit("squeeze-conv")
def _transforms_of(edit: Json, arguments: Json) -> Iterator[Json]:
    """Edits that older files hold of this method (schema 1), as transforms."""
    if set(arguments) == {"pool_head"}:
        yield pooled_head(arguments)
    else:
        yield inserted(edit, only_argument("squeeze-conv", arguments, "squeezed", "squeezed, or pool_head"), {})


@register
class SqueezeConv:
    """See the module."""

    name: ClassVar[str] = "squeeze-conv"
    Config: ClassVar[type] = SqueezeConvConfig
    evidence: ClassVar[Kind] = "none"
    changes: ClassVar[str] = "a spatial convolution gets a narrowing 1×1 convolution + BatchNorm + ReLU in front"
    where: ClassVar[str] = "before spatial convolutions"

    def plan(self, graph: ModelGraph, selection: Selection, config: SqueezeConvConfig, evidence: Evidence) -> Proposal:
        return plan_insertion(graph, selection, config, (self.name, {}))

    def notes(
        self, graph: ModelGraph, config: SqueezeConvConfig, decisions: Sequence[Decision], skipped: Sequence[Skipped]
    ) -> tuple[str, ...]:
        """What a reader should know of the plan."""
        return squeeze_notes(decisions, skipped, config.mode, has_squeeze=False)
