"""A method that the package does not know: 3×3 convolutions become 1×1 ones with the weights of their centre."""

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from surgery.planning.decision import Decision, PlanRow
from surgery.planning.registry import Proposal, register
from surgery.planning.sites import Skipped, spatial_sites
from surgery.transforms.field_checks import module_name
from surgery.transforms.modules_by_name import put, submodule
from surgery.transforms.transform import Transform, transform


@transform("centre_tap")
@dataclass(frozen=True)
class CentreTap(Transform):
    module: str

    def __post_init__(self):
        module_name("module", self.module)

    def apply(self, model, choice=None):
        conv = submodule(model, self.module, nn.Conv2d)
        tap = nn.Conv2d(conv.in_channels, conv.out_channels, 1, conv.stride, groups=conv.groups, bias=False)
        tap.weight = nn.Parameter(conv.weight.detach()[:, :, 1:2, 1:2].clone(), conv.weight.requires_grad)
        tap.bias = conv.bias
        put(model, self.module, tap)

    def changed(self):
        return (self.module,)

    def resized(self):
        return (self.module,)


@dataclass(frozen=True)
class CentreTapConfig:
    stride: bool = False


@register
class CentreTapMethod:
    name: ClassVar[str] = "centre-tap"
    Config: ClassVar[type] = CentreTapConfig
    evidence: ClassVar[str] = "none"
    changes: ClassVar[str] = "3×3 convolutions become 1×1"
    where: ClassVar[str] = "3×3 convolutions with a padding of 1"

    def plan(self, graph, selection, config, evidence):
        decisions, skipped = [], []
        for site in spatial_sites(graph)[0]:
            conv = graph.modules[site.name]
            reason = selection.unwanted(site.name)
            if not config.stride and conv.stride != (1, 1):
                reason = reason or "has a stride"
            if conv.kernel_size != (3, 3) or conv.padding != (1, 1):
                reason = reason or "not a 3×3 convolution with a padding of 1"
            if reason:
                skipped.append(Skipped(site.name, reason))
                continue
            row = PlanRow(site.name, "3×3 convolution", (site.in_channels, site.out_channels))
            decisions.append(Decision(site.name, (CentreTap(site.name),), (row,)))
        return Proposal(decisions, skipped)
