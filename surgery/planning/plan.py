"""Decide what surgery would do to a model, and say why not where it would not."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from surgery.core.checked_model import check_model
from surgery.core.errors import SurgeryError
from surgery.core.table import html_table, table
from surgery.graph import record
from surgery.graph.input_size import InputSize
from surgery.graph.skeleton import copied
from surgery.planning.decision import Decision, PlanRow
from surgery.planning.default_method import default_method
from surgery.planning.evidence import Evidence, check_evidence
from surgery.planning.feature_probe import feature_decision
from surgery.planning.registry import configured, notes_of
from surgery.planning.rehearsal import rehearse, transforms_of
from surgery.planning.selection import Selection
from surgery.planning.sites import Skipped
from surgery.transforms.carry_out import KeptOutputs, apply
from surgery.transforms.transform import Transform

Shapes = dict[str, dict[str, tuple[int, ...]]]
HEADER = ("site", "role", "channels", "ratio", "note")
SHARES = ("macs", "params", "latency", "keep")  # options of a method that say how much stays


@dataclass(frozen=True)
class Plan:
    """What a conversion would change. Prints as a table; its ``transforms`` are what a file's manifest holds.

    Attributes:
        decisions: everything to do, in order.
        skipped: candidates passed over, with the reason each.
        input_size: (C, H, W) of the image on which the model was recorded.
        method: its name.
        config: its options.
        notes: what a reader should know before carrying it out, a sentence each.
        shapes: of the model's modules that change, those of their own tensors: by them a foreign model is known.
    """

    decisions: tuple[Decision, ...]
    skipped: tuple[Skipped, ...]
    input_size: tuple[int, ...]
    method: str
    config: Any
    notes: tuple[str, ...] = ()
    shapes: Shapes = field(default_factory=dict, repr=False, hash=False)

    @property
    def transforms(self) -> tuple[Transform, ...]:
        """What is done to the model, in order."""
        return transforms_of(self.decisions)

    @property
    def sites(self) -> tuple[PlanRow, ...]:
        """What happens where: a row for each site."""
        return tuple(row for decision in self.decisions for row in decision.rows)

    @property
    def mode(self) -> str:
        """The method's mode; "" for one that has none."""
        return getattr(self.config, "mode", "")

    def apply(self, model: nn.Module) -> nn.Module:
        """Carry the plan out, in place, on the model that it was made for (or a copy of it, on meta too).

        Other weights in the same network may be there. A pruning still removes the channels that it was planned to
        remove; a zeta that narrows keeps those that are strongest in the weights that it then meets.

        Raises:
            SurgeryError: the model is not the one that it was made for. What changes is compared before anything is
                done; should a later step fail, what was done before remains done.
        """
        self.carry_out(model)
        return model

    def carry_out(self, model: nn.Module) -> KeptOutputs:
        """:meth:`apply`; returns, of the layers that lost outputs, which they still have."""
        check_model(model)
        self._check_model(model)
        return apply(model, self.transforms, choosing=not any(p.is_meta for p in model.parameters()))

    def kept_outputs(self, model: nn.Module) -> KeptOutputs:
        """Of the layers of ``model`` that the plan makes narrower, the outputs that it keeps; ``model`` stays as it is.

        Raises:
            SurgeryError: as :meth:`apply`.
        """
        self._check_model(model)
        return apply(copied(model), self.transforms, choosing=True)  # a later step chooses of what an earlier one left

    def _check_model(self, model: nn.Module) -> None:
        """Raise SurgeryError unless what changes is there, in the widths that it was planned for."""
        for name in dict.fromkeys(name for transform in self.transforms for name in transform.changed()):
            if not _has_module(model, name):
                raise SurgeryError(
                    f"{type(model).__name__} has no module {name!r}: not the model that this plan was made for"
                )
            shapes = _shapes(model.get_submodule(name))
            for key, shape in self.shapes.get(name, {}).items():
                if shapes.get(key) != shape:
                    raise SurgeryError(
                        f"{name}.{key} is of shape {shapes.get(key)}, and this plan was made for a "
                        f"model where it is of shape {shape}"
                    )

    def _title(self) -> str:
        mode = f", mode {self.mode}" if self.mode else ""
        shares = ((name, getattr(self.config, name, None)) for name in SHARES)
        left = "".join(f", {name} {_share(value)}" for name, value in shares if value is not None)
        return f"{self.method}{mode}{left}, recorded at {'×'.join(map(str, self.input_size))}"

    def _rows(self) -> list[tuple[str, ...]]:
        return [
            (
                row.site,
                row.role,
                f"{row.channels[0]} → {row.channels[1]}",
                f"{row.channels[0] / row.channels[1]:.3g}",
                row.note,
            )
            for row in self.sites
        ]

    def _lines(self) -> list[str]:
        """What follows the table."""
        verbs = Counter(row.verb for row in self.sites) or {"converted": 0}
        done = ", ".join(f"{count} {verb}" for verb, count in verbs.items())
        lines = [f"{done}, {len(self.skipped)} passed over"]
        lines += [f"  {decision.note}" for decision in self.decisions if decision.note]
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


def _share(value: Any) -> str:
    """One share, or shares by pattern as they are written on the command line."""
    if not isinstance(value, Mapping):
        return f"{value:g}"
    return ",".join(f"{pattern}={share:g}" for pattern, share in value.items())


def _has_module(model: nn.Module, name: str) -> bool:
    try:
        model.get_submodule(name)
    except AttributeError:
        return False
    return True


def plan(
    model: nn.Module,
    method: Any = None,
    *,
    include: str | Iterable[str] = (),
    exclude: str | Iterable[str] = (),
    input_size: InputSize | None = None,
    images: Iterable[Any] | Tensor | None = None,
    **options: Any,
) -> Plan:
    """Plan the conversion of a model; nothing is changed.

    Args:
        model: any nn.Module that maps an image batch (N, C, H, W); also on the meta device, where the method looks at
            no weights.
        method: a registered method's name (``python -m surgery methods`` lists them and says which is the default), or
            its config with all options.
        include, exclude: name patterns of sites (shell style; ``layer3`` also means what lies below it).
        input_size: (C, H, W), (H, W) or one side to record the model with; default: its configured one, else 224
            pixels.
        images: what the method looks at, where it needs images: batches (N, C, H, W), or (images, labels).
        **options: of the method, such as ``zeta=4``, ``mode="downscale"`` or ``macs=0.77``; docs/methods has a page on
            each.

    Returns:
        The plan, rehearsed on a copy without weights; ``Plan.apply`` carries it out.

    Raises:
        ValueError, TypeError: an argument, or a kind of model, that cannot be; the message says what can.
        TraceError: the model's forward fails.
    """
    check_model(model)
    chosen, config = configured(default_method() if method is None else method, options)
    selection, evidence = Selection(include, exclude), Evidence(model, images)
    check_evidence(chosen.name, chosen.evidence, evidence)
    graph = record(model, input_size)
    proposal = chosen.plan(graph, selection, config, evidence)
    decisions, failed = rehearse(graph, proposal.decisions)
    skipped = tuple(sorted([*proposal.skipped, *failed], key=lambda item: item.reason))
    notes = proposal.notes + notes_of(chosen, graph, config, decisions, skipped)
    decisions = [*decisions, *feature_decision(graph, decisions)]
    shapes = _shapes_of_changed(model, transforms_of(decisions))
    return Plan(tuple(decisions), skipped, graph.input_shape, chosen.name, config, notes, shapes)


def _shapes_of_changed(model: nn.Module, transforms: Iterable[Transform]) -> Shapes:
    changed = dict.fromkeys(name for transform in transforms for name in transform.changed())
    return {name: _shapes(model.get_submodule(name)) for name in changed if _has_module(model, name)}


def _shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Shapes of a module's own parameters and buffers."""
    return {key: tuple(t.shape) for key, t in (*module._parameters.items(), *module._buffers.items()) if t is not None}
