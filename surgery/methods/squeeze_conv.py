"""``squeeze-conv``: a real 1×1 convolution + BatchNorm + ReLU in front of spatial convolutions (VGG-16-1×1).

The baseline that PiX is compared with in FACS Table 4; converting the result with ``method="pix"`` in squeeze mode
turns those convolutions into PiX.
"""

import itertools
from collections import OrderedDict
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from surgery.graph import ModelGraph
from surgery.methods.pix.ops.reference import subset_bounds
from surgery.methods.planners.insertion import apply_pooled_head, insert_before, plan_insertion
from surgery.planning.registry import Proposal, register
from surgery.planning.request import Request
from surgery.transforms.edit import Edit, checked_conv
from surgery.transforms.edit_arguments import TRUE, WIDTH, Form


@dataclass(frozen=True)
class SqueezeConvConfig:
    """No options."""


@register
class SqueezeConv:
    """See the module."""

    name: ClassVar[str] = "squeeze-conv"
    modes: ClassVar[tuple[str, ...]] = ("downscale", "prune")
    Config: ClassVar[type] = SqueezeConvConfig
    forms: ClassVar[tuple[Form, ...]] = (Form({"pool_head": TRUE}), Form({"squeezed": WIDTH}))

    def plan(self, graph: ModelGraph, request: Request, config: SqueezeConvConfig) -> Proposal:
        return plan_insertion(self.name, graph, request, {})

    def apply(self, model: nn.Module, edit: Edit) -> None:
        if edit.arguments.get("pool_head"):
            apply_pooled_head(model)
            return
        conv = checked_conv(model, edit)
        width = int(edit.arguments["squeezed"])
        squeeze = nn.Conv2d(conv.in_channels, width, 1, bias=False)
        with torch.no_grad():
            squeeze.weight.zero_()
            bounds = subset_bounds(conv.in_channels, width)
            for row, (low, high) in enumerate(itertools.pairwise(bounds)):
                squeeze.weight[row, low:high] = 1 / (high - low)
        parts = OrderedDict(conv=squeeze, norm=nn.BatchNorm2d(width), act=nn.ReLU(inplace=True))
        insert_before(model, edit, conv, nn.Sequential(parts), 1.0)
