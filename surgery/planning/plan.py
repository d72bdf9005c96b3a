"""Decide what surgery would do to a model, and say why not where it would not."""

import copy
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from surgery.core.checked_model import check_model
from surgery.core.errors import SurgeryError, TraceError, check_choice
from surgery.core.table import html_table, si, table
from surgery.graph import ModelGraph, record
from surgery.graph.input_size import InputSize
from surgery.graph.skeleton import meta_copy
from surgery.planning.cost import graph_cost
from surgery.planning.notes import notes_of
from surgery.planning.registry import Method, Proposal, configure, method_named
from surgery.planning.request import Request, Zeta
from surgery.planning.sites import Skipped
from surgery.transforms.edit import Edit, apply
from surgery.transforms.narrow import Narrowing

HEADER = ("site", "role", "channels", "ratio", "note")


@dataclass(frozen=True)
class Plan:
    """What a conversion would change. Prints as a table; ``edits`` is what a file's manifest holds.

    Attributes:
        edits: everything to do, in order (a narrowing first, where there is one).
        skipped: candidates passed over, with the reason each.
        input_size: (C, H, W) of the image on which the model was recorded.
        notes: what a reader should know before carrying it out, a sentence each.
    """

    edits: tuple[Edit, ...]
    skipped: tuple[Skipped, ...]
    input_size: tuple[int, ...]
    method: str
    mode: str
    importance: str = "l1"
    narrowing: Narrowing | None = field(default=None, repr=False, compare=False)
    notes: tuple[str, ...] = ()

    @property
    def sites(self) -> tuple[Edit, ...]:
        """The conversions: one edit per site."""
        return tuple(edit for edit in self.edits if edit.site)

    def kept_outputs(self, model: nn.Module) -> dict[str, list[int]]:
        """Of the layers of ``model`` that the plan narrows, the outputs that it keeps."""
        if self.narrowing is None:
            return {}
        chosen = self.narrowing.choose(model, self.importance)
        return {name: out for name, (_, out) in chosen.items() if out is not None}

    def _title(self) -> str:
        return f"{self.method}, mode {self.mode}, recorded at {'×'.join(map(str, self.input_size))}"

    def _rows(self) -> list[tuple[str, ...]]:
        return [
            (
                edit.site,
                edit.role,
                f"{edit.channels[0]} → {edit.channels[1]}",
                f"{edit.channels[0] / edit.channels[1]:.3g}",
                edit.note,
            )
            for edit in self.sites
        ]

    def _lines(self) -> list[str]:
        """What follows the table."""
        lines = [f"{len(self.sites)} converted, {len(self.skipped)} passed over"]
        lines += [f"  {edit.note}" for edit in self.edits if not edit.site and edit.note]
        for reason, count in Counter(item.reason for item in self.skipped).most_common():
            names = [item.name for item in self.skipped if item.reason == reason]
            lines.append(f"  {count} × {reason}: {', '.join(names[:3])}{', …' if count > 3 else ''}")
        lines += [f"note: {note}" for note in self.notes]
        return lines

    def __str__(self) -> str:
        rows = self._rows()
        parts = [self._title(), *([table(HEADER, rows, right=(3,))] if rows else []), *self._lines()]
        return "\n".join(parts)

    def _repr_html_(self) -> str:
        """The same for notebooks."""
        return html_table(HEADER, self._rows(), right=(3,), caption=self._title(), lines=self._lines())


def plan(
    model: nn.Module,
    method: str = "pix",
    *,
    zeta: Zeta = None,
    mode: str = "squeeze",
    include: str | Iterable[str] = (),
    exclude: str | Iterable[str] = (),
    insert: str | Iterable[str] = (),
    projections: str = "residual",
    equal_width: bool | None = None,
    head: str = "keep",
    importance: str = "l1",
    input_size: InputSize | None = None,
    **options: Any,
) -> Plan:
    """Plan the conversion of a model; nothing is changed.

    Args:
        model: any nn.Module that maps an image batch (N, C, H, W); also on the meta device.
        method: a registered method: ``pix``, ``squeeze-conv``.
        zeta: a whole number >= 1, or a dict of name patterns, to be compared with the network's own ratio: width of its
            residual stream ÷ width of a block's squeeze (4 for every ResNet). Every site keeps its own C_in / C_out; a
            zeta above the network's narrows all in proportion, which ``notes`` says, a smaller one changes nothing. In
            the modes that insert, each inserted module's ratio (``prune``: 1 by default).
        mode: ``squeeze``, ``downscale`` or ``prune``.
        include, exclude: name patterns (shell style; ``layer3`` also means what lies below it).
        insert: name patterns of the spatial convolutions to insert before.
        projections: of inverted bottlenecks: ``residual`` (those that end in a residual sum), ``all`` or ``none``.
        equal_width: convert bottleneck heads that keep the width; default: only in a network that narrows elsewhere.
        head: ``pool`` swaps VGG's 4096-wide head for global average pooling and one linear layer.
        importance: criterion by which a narrowing keeps filters (``l1``).
        input_size: (C, H, W), (H, W) or one side to record the model with; default: its configured one, else 224
            pixels.
        **options: of the method (for ``pix``: tau, fusion, operator, activation, predictor_norm, norm, grouping).

    Raises:
        ValueError, TypeError: an argument, or a kind of model, that cannot be; the message says what can.
        TraceError: the model's forward fails.
    """
    check_model(model)
    chosen = method_named(method)
    config = configure(chosen, options)
    check_choice(f"mode for method {method!r}", mode, chosen.modes)
    request = Request(
        zeta,
        mode,
        include,
        exclude,
        insert,
        projections,
        equal_width,
        head,
        importance,
    )
    if head != "keep" and mode == "squeeze":
        raise ValueError("head='pool' goes with mode='downscale' or mode='prune'")
    graph = record(model, input_size)
    proposal = _rehearsed(model, graph, chosen, request, config)
    edits = tuple(proposal.edits)
    if proposal.narrowing is not None:
        edits = (proposal.narrowing.edit(), *edits)
    skipped = tuple(sorted(proposal.skipped, key=lambda item: item.reason))
    notes = notes_of(edits, skipped, method, mode)
    if proposal.narrowing is not None and proposal.own_ratio is not None:
        notes += (_narrowing_note(model, graph, chosen, request, config, edits, proposal.own_ratio),)
    return Plan(edits, skipped, graph.input_shape, method, mode, importance, proposal.narrowing, notes)


def _narrowing_note(
    model: nn.Module,
    graph: ModelGraph,
    method: Method,
    request: Request,
    config: Any,
    edits: Sequence[Edit],
    own_ratio: int,
) -> str:
    """That a zeta narrows the network, what is left of its MACs, and what would be left without."""
    without = _rehearsed(model, graph, method, replace(request, zeta=None), config)
    before, narrowed, same_width = (
        graph_cost(g).macs for g in (graph, _converted(model, graph, edits), _converted(model, graph, without.edits))
    )
    return (
        f"zeta={request.zeta} is above this network's own ratio {own_ratio} (residual stream ÷ squeeze), so blocks "
        f"become narrower: {narrowed / before:.2f} of {si(before)} MACs are left; zeta={own_ratio} (or none) keeps all "
        f"widths and leaves {same_width / before:.2f}"
    )


def _converted(model: nn.Module, graph: ModelGraph, edits: Sequence[Edit]) -> ModelGraph:
    """The recorded forward of a copy after some edits."""
    return record(apply(_trial_copy(model, graph), edits), graph.input_shape)


def _trial_copy(model: nn.Module, graph: ModelGraph) -> nn.Module:
    """A copy to try edits on: on the meta device, but for a model whose forward looks at values."""
    return copy.deepcopy(model) if graph.needs_values else meta_copy(model)


def _rehearsed(model: nn.Module, graph: ModelGraph, method: Method, request: Request, config: Any) -> Proposal:
    """The method's proposal, rehearsed on a copy: what cannot be done is known before anything is.

    A site whose block cannot be rewritten is dropped, with the reason; any other failure is raised.
    """
    proposal: Proposal = method.plan(graph, request, config)
    trial = _trial_copy(model, graph)
    if proposal.narrowing is not None:
        apply(trial, [proposal.narrowing.edit()])
    kept: list[Edit] = []
    for edit in proposal.edits:
        rewrites = bool(edit.arguments.get("erase"))
        # only a rewriting may fail half-way through an edit, so that is tried on a copy, which then takes over
        candidate = _trial_copy(trial, graph) if rewrites else trial
        try:
            apply(candidate, [edit])
        except SurgeryError as error:
            if not rewrites:
                raise
            proposal.skipped.append(Skipped(edit.site, str(error)))
            continue
        trial = candidate
        kept.append(edit)
    proposal.edits = kept
    if kept:
        try:
            record(trial, graph.input_shape)
        except TraceError as error:
            raise SurgeryError(
                f"method {method.name!r} with {request} would give a model that fails: {error}"
            ) from error
    return proposal
