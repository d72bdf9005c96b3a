"""Planning of squeeze mode, for any method that takes a squeeze convolution's place: which sites, at which ratio."""

from collections import Counter
from collections.abc import Callable
from typing import Any

from surgery.edit import Edit
from surgery.graph import ModelGraph
from surgery.graph.channels import channel_groups
from surgery.graph.dataflow import conv_spec
from surgery.methods.registry import Proposal
from surgery.narrow import Narrowing
from surgery.request import Request
from surgery.sites import HEAD, PROJECTION, TRANSITION, Site, Skipped, squeeze_sites


def plan_squeeze(
    method: str, graph: ModelGraph, request: Request, arguments: Callable[[Site], dict[str, Any]]
) -> Proposal:
    """Edits that put ``method`` in the place of squeeze convolutions.

    Each site keeps its own ratio C_in / C_out. A zeta above the network's dominating ratio narrows every site in
    proportion; a smaller one never widens.
    """
    sites, skipped = squeeze_sites(graph)
    request.check_patterns([site.name for site in sites])
    chosen: list[Site] = []
    for site in sites:
        reason = request.wants(site.name) or _unwanted(site, request, sites)
        if reason:
            skipped.append(Skipped(site.name, reason))
        else:
            chosen.append(site)
    narrowing = Narrowing(channel_groups(graph)) if request.zeta is not None and chosen else None
    dominating = dominating_ratio(chosen)
    notes = {}
    for site in chosen:
        zeta = request.zeta_of(site.name)
        if narrowing is not None and zeta is not None:
            notes[site.name] = _shrink(graph, site, zeta, dominating, narrowing)
    widths = narrowing.widths() if narrowing else {}
    edits = []
    for site in chosen:
        into, out = widths.get(site.name, (None, None))
        channels = (into or site.in_channels, out or site.out_channels)
        edits.append(Edit(method, site.name, site.role, channels, arguments(site), notes.get(site.name, "")))
    return Proposal(edits, skipped, narrowing if widths else None)


def dominating_ratio(sites: list[Site]) -> int:
    """The commonest C_in / C_out above 1, rounded; of equally common ones the largest; 1 where there is none."""
    counts = Counter(round(site.ratio) for site in sites if site.ratio > 1)
    return max(counts, key=lambda ratio: (counts[ratio], ratio), default=1)


def _unwanted(site: Site, request: Request, sites: list[Site]) -> str:
    if site.role in (PROJECTION, TRANSITION) and request.projections == "none":
        return "a projection, and projections='none'"
    if site.role == TRANSITION and request.projections != "all":
        return "projection without a residual sum of its own (projections='all' includes it)"
    if site.role == HEAD and site.ratio == 1:
        wanted = request.equal_width
        if wanted is None:
            wanted = any(other.ratio > 1 and other.role in (HEAD, PROJECTION) for other in sites)
        if not wanted:
            return "keeps the width, in a network that narrows nowhere (equal_width=True includes it)"
    return ""


def _shrink(graph: ModelGraph, site: Site, zeta: int, dominating: int, narrowing: Narrowing) -> str:
    """Narrow a site in proportion to ``zeta``; returns a note where the ratio is not what zeta alone would say."""
    factor = zeta / dominating
    if factor <= 1:
        return f"keeps its ratio {site.ratio:g}: zeta={zeta} is below the network's {dominating}" if factor < 1 else ""
    if site.role != HEAD:
        return f"keeps its ratio {site.ratio:g}: its output is a residual stream"
    refused = narrowing.refuse(site.name)
    if refused:
        return f"keeps its ratio {site.ratio:g}: {refused}"
    narrowing.shrink(site.name, factor)
    for consumer in site.after.consumers:
        inner = consumer.meta.get("module") if consumer.meta["kind"] == "conv" else None
        # the middle of a bottleneck keeps its width: it narrows with the head; growth layers (DenseNet) do not
        if inner and conv_spec(graph, consumer).out_channels == site.out_channels and not narrowing.refuse(inner):
            narrowing.shrink(inner, factor)
    return f"narrowed from {site.out_channels}"
