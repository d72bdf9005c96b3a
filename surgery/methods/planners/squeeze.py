"""Planning of squeeze mode, for any method that takes a squeeze convolution's place: which sites, at which ratio."""

from collections import Counter
from collections.abc import Callable
from typing import Any

from surgery.graph import ModelGraph
from surgery.graph.channels import channel_groups
from surgery.graph.dataflow import conv_spec, residual_sum
from surgery.planning.registry import Proposal
from surgery.planning.request import Request
from surgery.planning.sites import HEAD, PROJECTION, TRANSITION, Site, Skipped, squeeze_sites
from surgery.transforms.edit import Edit
from surgery.transforms.narrow import Narrowing


def plan_squeeze(
    method: str, graph: ModelGraph, request: Request, arguments: Callable[[Site], dict[str, Any]]
) -> Proposal:
    """Edits that put ``method`` in the place of squeeze convolutions.

    Each site keeps its own ratio C_in / C_out. A zeta above the network's own ratio narrows every site in proportion;
    a smaller one never widens.
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
    own_ratio = network_ratio(graph, chosen)
    notes = {}
    for site in chosen:
        zeta = request.zeta_of(site.name)
        if narrowing is not None and zeta is not None:
            notes[site.name] = _shrink(graph, site, zeta, own_ratio, narrowing)
    widths = narrowing.widths() if narrowing else {}
    edits = []
    for site in chosen:
        into, out = widths.get(site.name, (None, None))
        channels = (into or site.in_channels, out or site.out_channels)
        edits.append(Edit(method, site.name, site.role, channels, arguments(site), notes.get(site.name, "")))
    return Proposal(edits, skipped, narrowing if widths else None, own_ratio)


def network_ratio(graph: ModelGraph, sites: list[Site]) -> int:
    """The ratio of a network's blocks, rounded: width of the residual stream ÷ width of the head that squeezes it.

    It is 4 for every ResNet, however few blocks it has: the first block of a stage reads a narrower stream than it
    writes, so its C_in / C_out says less. Where no site lies on a residual branch (DenseNet, VGG with inserted
    squeezes) it is C_in / C_out. The commonest counts, of equally common ones the largest; 1 where there is none.
    """
    ratios = [_block_ratio(graph, site) for site in sites]
    known = [ratio for ratio in ratios if ratio is not None]
    counts = Counter(round(ratio) for ratio in known or [site.ratio for site in sites] if ratio > 1)
    return max(counts, key=lambda ratio: (counts[ratio], ratio), default=1)


def _block_ratio(graph: ModelGraph, site: Site) -> float | None:
    """Width of the residual stream that a site's block writes ÷ width of its squeeze; None where there is none."""
    if site.role != HEAD:
        return site.ratio if site.role == PROJECTION else None
    total = residual_sum(site.node)
    return None if total is None else total.meta["shape"][1] / site.out_channels


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


def _shrink(graph: ModelGraph, site: Site, zeta: int, own_ratio: int, narrowing: Narrowing) -> str:
    """Narrow a site in proportion to ``zeta``; returns a note where the ratio is not what zeta alone would say."""
    factor = zeta / own_ratio
    if factor <= 1:
        return f"keeps its ratio {site.ratio:g}: zeta={zeta} is below the network's {own_ratio}" if factor < 1 else ""
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
