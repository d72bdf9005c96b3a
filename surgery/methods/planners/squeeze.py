"""Planning in the place of squeeze convolutions, for any method: which sites, at which ratio."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from surgery.core.table import si
from surgery.graph import ModelGraph
from surgery.graph.channels import channel_groups
from surgery.graph.dataflow import conv_spec, residual_sum
from surgery.graph.operation_cost import graph_cost
from surgery.methods.planners.narrowing import Narrowing
from surgery.methods.planners.removal import plan_removal
from surgery.methods.planners.squeeze_notes import squeeze_notes
from surgery.methods.planners.squeeze_options import SqueezeOptions
from surgery.planning.decision import Decision, PlanRow
from surgery.planning.registry import Proposal
from surgery.planning.rehearsal import rehearse, rehearsed_graph
from surgery.planning.selection import Selection
from surgery.planning.sites import HEAD, PROJECTION, TRANSITION, Site, Skipped, squeeze_sites
from surgery.transforms.replace import Replace

WIDTHS = "widths"  # the decision that makes layers narrower, before the sites
Layer = tuple[str, dict[str, Any]]


def plan_squeeze(
    graph: ModelGraph, selection: Selection, options: SqueezeOptions, layer: Layer, keep_norm: bool = False
) -> Proposal:
    """Decisions that put a layer in the place of squeeze convolutions.

    Each site keeps its own ratio C_in / C_out. A zeta above the network's own ratio narrows every site in proportion;
    a smaller one never widens.

    Args:
        layer: kind of layer and its options.
        keep_norm: whether the norm behind a replaced convolution stays.
    """
    chosen, skipped = _chosen_sites(graph, selection, options)
    narrowing = Narrowing(channel_groups(graph)) if options.zeta is not None and chosen else None
    own_ratio = network_ratio(graph, chosen)
    notes = {}
    for site in chosen:
        zeta = options.zeta_of(site.name)
        if narrowing is not None and zeta is not None:
            notes[site.name] = _shrink(graph, site, zeta, own_ratio, narrowing)
    widths = narrowing.widths() if narrowing else {}
    decisions = []
    if narrowing is not None and widths:
        decisions.append(Decision(WIDTHS, (narrowing.transform(options.importance),)))
    for site in chosen:
        into, out = widths.get(site.name, (None, None))
        channels = (into or site.in_channels, out or site.out_channels)
        transforms = (Replace(site.name, layer[0], channels, layer[1]), *plan_removal(graph, site, keep_norm))
        row = PlanRow(site.name, site.role, channels, notes.get(site.name, ""))
        decisions.append(Decision(site.name, transforms, (row,), (WIDTHS,) if widths else ()))
    return Proposal(decisions, skipped)


def _chosen_sites(graph: ModelGraph, selection: Selection, options: SqueezeOptions) -> tuple[list[Site], list[Skipped]]:
    sites, skipped = squeeze_sites(graph)
    options.check_patterns(selection, [site.name for site in sites])
    chosen: list[Site] = []
    for site in sites:
        reason = selection.unwanted(site.name) or _unwanted(site, options, sites)
        if reason:
            skipped.append(Skipped(site.name, reason))
        else:
            chosen.append(site)
    return chosen, skipped


def squeeze_plan_notes(
    graph: ModelGraph,
    options: SqueezeOptions,
    layer: Layer,
    decisions: Sequence[Decision],
    skipped: Sequence[Skipped],
) -> tuple[str, ...]:
    """What a reader should know of a plan in any mode; where a zeta narrows, what it costs and would cost without."""
    notes = squeeze_notes(decisions, skipped, options.mode, has_squeeze=True)
    if all(decision.name != WIDTHS for decision in decisions):
        return notes
    converted = Selection(tuple(decision.name for decision in decisions if decision.rows))
    same_width = plan_squeeze(graph, converted, options.without_zeta(), layer).decisions
    return (*notes, _narrowing_note(graph, options, decisions, same_width))


def _narrowing_note(
    graph: ModelGraph, options: SqueezeOptions, decisions: Sequence[Decision], same_width: Sequence[Decision]
) -> str:
    """That a zeta narrows the network, what is left of its MACs, and what would be left without.

    Args:
        decisions: of the plan.
        same_width: those of the same options without zeta.
    """
    converted = {decision.name for decision in decisions}
    own_ratio = network_ratio(graph, [site for site in squeeze_sites(graph)[0] if site.name in converted])
    possible, _ = rehearse(graph, same_width)
    before, narrowed, unchanged = (
        graph_cost(g).macs for g in (graph, rehearsed_graph(graph, decisions), rehearsed_graph(graph, possible))
    )
    return (
        f"zeta={options.zeta} is above this network's own ratio {own_ratio} (residual stream ÷ squeeze), so blocks "
        f"become narrower: {narrowed / before:.2f} of {si(before)} MACs are left; zeta={own_ratio} (or none) keeps all "
        f"widths and leaves {unchanged / before:.2f}"
    )


def network_ratio(graph: ModelGraph, sites: list[Site]) -> int:
    """The ratio of a network's blocks, rounded: width of the residual stream ÷ width of the head that squeezes it.

    It is 4 for every ResNet, however few blocks it has: the first block of a stage reads a narrower stream than it
    writes, so its C_in / C_out says less. Where no site lies on a residual branch (DenseNet, VGG with inserted
    squeezes) it is C_in / C_out. The commonest counts, of equally common ones the largest; 1 where there is none.
    """
    ratios = [_block_ratio(graph, site) for site in sites]
    block_ratios = [ratio for ratio in ratios if ratio is not None]
    counts = Counter(round(ratio) for ratio in block_ratios or [site.ratio for site in sites] if ratio > 1)
    return max(counts, key=lambda ratio: (counts[ratio], ratio), default=1)


def _block_ratio(graph: ModelGraph, site: Site) -> float | None:
    """Width of the residual stream that a site's block writes ÷ width of its squeeze; None where there is none."""
    if site.role != HEAD:
        return site.ratio if site.role == PROJECTION else None
    total = residual_sum(site.node)
    return None if total is None else total.meta["shape"][1] / site.out_channels


def _unwanted(site: Site, options: SqueezeOptions, sites: list[Site]) -> str:
    if site.role in (PROJECTION, TRANSITION) and options.projections == "none":
        return "a projection, and projections='none'"
    if site.role == TRANSITION and options.projections != "all":
        return "projection without a residual sum of its own (projections='all' includes it)"
    if site.role == HEAD and site.ratio == 1:
        wanted = options.equal_width
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
