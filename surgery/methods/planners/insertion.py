"""Inserting a channel squeeze before spatial convolutions (modes ``downscale`` and ``prune``)."""

from typing import Any

import torch
from torch import Tensor, nn

from surgery.core.errors import SurgeryError
from surgery.graph import ModelGraph
from surgery.graph.dataflow import conv_spec
from surgery.methods.pix.ops.reference import subset_members
from surgery.planning.registry import Proposal
from surgery.planning.request import Request, matches
from surgery.planning.sites import Site, Skipped, first_of_stage, spatial_sites
from surgery.transforms.edit import Edit, replace
from surgery.transforms.squeezed_conv import SqueezedConv2d


def plan_insertion(method: str, graph: ModelGraph, request: Request, arguments: dict[str, Any]) -> Proposal:
    """Edits that put ``method`` before spatial convolutions.

    By default downscaling leaves the first convolution of each resolution stage alone (VGG-16-1×1), pruning only the
    stem; ``insert`` chooses by name pattern instead.
    """
    candidates, skipped = spatial_sites(graph)
    request.check_patterns([site.name for site in candidates])
    edits: list[Edit] = []
    for site in candidates:
        zeta = request.zeta_of(site.name, 1 if request.mode == "prune" else None)
        reason = _unwanted(graph, request, site, zeta)
        if reason:
            skipped.append(Skipped(site.name, reason))
            continue
        assert zeta is not None
        width = max(1, site.in_channels // zeta)
        edits.append(
            Edit(
                method,
                site.name,
                site.role,
                (site.in_channels, site.out_channels),
                arguments | {"squeezed": width},
                f"inserted before it: {site.in_channels} → {width}",
            )
        )
    if request.head == "pool":
        edits.append(Edit(method, "", "classifier head", arguments={"pool_head": True}, note="global pooling + linear"))
    return Proposal(edits, skipped)


def _unwanted(graph: ModelGraph, request: Request, site: Site, zeta: int | None) -> str:
    if request.insert:
        if not any(matches(site.name, pattern) for pattern in request.insert):
            return "not in insert="
    elif request.mode == "downscale" and first_of_stage(graph, site):
        return "first of its stage: keeps its input"
    if zeta is None:
        if not isinstance(request.zeta, dict):
            raise ValueError("zeta=None: mode='downscale' needs a zeta, such as zeta=2")
        return "no zeta pattern matches it"
    if zeta > 1 and conv_spec(graph, site.node).groups > 1:
        return "grouped: its input can only be gated (zeta=1), not narrowed"
    if zeta > site.in_channels:
        return f"has fewer input channels ({site.in_channels}) than zeta={zeta}"
    return request.wants(site.name)


def insert_before(
    model: nn.Module, edit: Edit, conv: nn.Conv2d, squeeze: nn.Module, gain: float, grouping: str = "contiguous"
) -> None:
    """Put ``squeeze`` in front of a convolution and narrow the convolution's input to match.

    The convolution's new filters are the sums of the old ones over each subset, times ``gain``: what it computed
    before if the channels of a subset agree and the squeeze divides by ``gain``.
    """
    width = int(edit.arguments["squeezed"])
    with torch.no_grad():
        weight = nn.Parameter(_sum_subsets(conv, width, grouping) * gain, conv.weight.requires_grad)
    squeeze.to(device=conv.weight.device, dtype=conv.weight.dtype)
    replace(model, edit.site, SqueezedConv2d.wrap(conv, squeeze, weight))


def _sum_subsets(conv: nn.Conv2d, width: int, grouping: str) -> Tensor:
    if width == conv.in_channels:
        return conv.weight.clone()
    members = subset_members(conv.in_channels, width, grouping)
    return torch.stack([conv.weight[:, channels].sum(1) for channels in members], 1)


def apply_pooled_head(model: nn.Module) -> None:
    """Swap VGG's 4096-wide head for global average pooling and one linear layer (timm's and torchvision's VGG).

    Raises:
        SurgeryError: for a model without such a head.
    """
    features = getattr(model, "features", None)
    last = (
        next((m for m in reversed(list(features.children())) if isinstance(m, nn.Conv2d)), None) if features else None
    )
    linears = [m for m in model.modules() if isinstance(m, nn.Linear)]
    if last is None or not linears:
        raise SurgeryError(f"head='pool' is for VGG-like models; {type(model).__name__} has no such head")
    width = last.out_channels
    if hasattr(model, "pre_logits") and hasattr(model, "head") and hasattr(model.head, "fc"):
        fc = linears[-1]
        model.pre_logits = nn.Identity()
        model.head.fc = _like(nn.Linear(width, fc.out_features), fc)
        setattr(model, "head_hidden_size", width)  # noqa: B010 (nn.Module types every attribute as a module)
        return
    if isinstance(getattr(model, "classifier", None), nn.Sequential) and isinstance(
        getattr(model, "avgpool", None), nn.AdaptiveAvgPool2d
    ):
        fc = linears[-1]
        model.avgpool = nn.AdaptiveAvgPool2d(1)
        model.classifier = _like(nn.Linear(width, fc.out_features), fc)
        return
    raise SurgeryError(f"head='pool' is for VGG-like models; {type(model).__name__} has no such head")


def _like(linear: nn.Linear, other: nn.Linear) -> nn.Linear:
    return linear.to(device=other.weight.device, dtype=other.weight.dtype)
