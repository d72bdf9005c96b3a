"""Planning of a channel squeeze in front of spatial convolutions (modes ``downscale`` and ``prune``)."""

from typing import Any

from surgery.graph import ModelGraph
from surgery.graph.dataflow import conv_spec
from surgery.methods.planners.squeeze_options import InsertionOptions
from surgery.planning.decision import Decision, PlanRow
from surgery.planning.registry import Proposal
from surgery.planning.selection import Selection, matches
from surgery.planning.sites import Site, Skipped, first_of_stage, spatial_sites
from surgery.transforms.insert_before import InsertBefore
from surgery.transforms.pooled_head import PooledHead


def plan_insertion(
    graph: ModelGraph, selection: Selection, options: InsertionOptions, layer: tuple[str, dict[str, Any]]
) -> Proposal:
    """Decisions that put a layer in front of spatial convolutions.

    By default downscaling leaves the first convolution of each resolution stage alone (VGG-16-1×1), pruning only the
    stem; ``insert`` chooses by name pattern instead.

    Args:
        layer: kind of layer and its options.
    """
    candidates, skipped = spatial_sites(graph)
    options.check_patterns(selection, [site.name for site in candidates])
    decisions: list[Decision] = []
    for site in candidates:
        zeta = options.zeta_of(site.name, 1 if options.mode == "prune" else None)
        reason = _unwanted(graph, selection, options, site, zeta)
        if reason:
            skipped.append(Skipped(site.name, reason))
            continue
        assert zeta is not None
        decisions.append(_insertion(site, max(1, site.in_channels // zeta), layer))
    if options.head == "pool":
        decisions.append(Decision("head", (PooledHead(),), note="global pooling + linear"))
    return Proposal(decisions, skipped)


def _insertion(site: Site, squeezed: int, layer: tuple[str, dict[str, Any]]) -> Decision:
    channels = (site.in_channels, site.out_channels)
    inserted = InsertBefore(site.name, layer[0], channels, squeezed, layer[1])
    row = PlanRow(site.name, site.role, channels, f"inserted before it: {site.in_channels} → {squeezed}")
    return Decision(site.name, (inserted,), (row,))


def _unwanted(graph: ModelGraph, selection: Selection, options: InsertionOptions, site: Site, zeta: int | None) -> str:
    if options.insert:
        if not any(matches(site.name, pattern) for pattern in options.insert):
            return "not in insert="
    elif options.mode == "downscale" and first_of_stage(graph, site):
        return "first of its stage: keeps its input"
    if zeta is None:
        if not isinstance(options.zeta, dict):
            raise ValueError("zeta=None: mode='downscale' needs a zeta, such as zeta=2")
        return "no zeta pattern matches it"
    if zeta > 1 and conv_spec(graph, site.node).groups > 1:
        return "grouped: its input can only be gated (zeta=1), not narrowed"
    if zeta > site.in_channels:
        return f"has fewer input channels ({site.in_channels}) than zeta={zeta}"
    return selection.unwanted(site.name)
