"""``surgery.sensitivity``: every site by every method, one at a time."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from surgery.calibration.calibrating import FitSettings
from surgery.core.checked_model import check_model, first_weight
from surgery.core.errors import check_choice
from surgery.core.eval_mode import eval_mode
from surgery.core.extras import check_extra
from surgery.core.run_setting import Setting, describe
from surgery.graph import ModelGraph, record
from surgery.graph.input_size import InputSize
from surgery.graph.skeleton import copied
from surgery.planning.candidate import STRENGTHS, Candidate, candidates_of
from surgery.planning.cost import graph_cost
from surgery.planning.evidence import Evidence, check_evidence
from surgery.planning.plan import plan
from surgery.planning.registry import configure, method_named
from surgery.planning.registry import methods as registered_methods
from surgery.planning.selection import Selection
from surgery.sensitivity_analysis.agreement import agreement, logits_of
from surgery.sensitivity_analysis.images import Images, split_images
from surgery.sensitivity_analysis.measuring import Measurement
from surgery.sensitivity_analysis.result import Sensitivity, SensitivityRow
from surgery.sensitivity_analysis.saved_seconds import SavedSeconds
from surgery.sensitivity_analysis.store import Store, digest_of

MEMORY = 2e9
MOST = 3  # layers that are fitted behind a change: a block has as many; of a part that is the network, not all
Options = Mapping[str, Mapping[str, Any]]


def default_methods() -> tuple[str, ...]:
    """The names of the methods that say of themselves, by an attribute ``by_site``, that they are worth weighing."""
    return tuple(name for name, method in registered_methods().items() if getattr(method, "by_site", False))


@dataclass(frozen=True)
class SensitivitySpec:
    """What is measured, and how.

    Attributes:
        methods: names of the methods, each with its options.
        strengths: shares of a site's channels that stay, where a method can choose.
        count: of images at most.
        setting: batch, engine, dtype and threads that times are measured for; None measures none.
        file: where rows are kept as they are measured.
        memory: bytes of feature maps held at once; fewer images take part where a part takes big maps.
    """

    methods: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    strengths: tuple[float, ...] = STRENGTHS
    count: int | None = 256
    setting: Setting | None = None
    file: str | Path | None = None
    memory: float = MEMORY


def sensitivity(
    model: nn.Module,
    images: Iterable[Any] | Tensor,
    methods: Sequence[str] | Options | None = None,
    *,
    include: str | Iterable[str] = (),
    exclude: str | Iterable[str] = (),
    input_size: InputSize | None = None,
    spec: SensitivitySpec | None = None,
    **settings: Any,
) -> Sensitivity:
    """What each method would cost and save at each site, one at a time; the model is not changed.

    A candidate is carried out in a copy of the smallest part of the network that holds it (a residual block), and what
    lies behind it there is fitted in closed form to what the part gave (:func:`surgery.calibrate`), on three quarters
    of the images. The others judge: the forward goes on from that part with what the original gave before it.

    Args:
        images: batches (N, C, H, W), or (images, labels), prepared as the network takes them.
        methods: names, or names with options; default: those that are meant to be mixed.
        include, exclude: name patterns of sites.
        input_size: as for :func:`surgery.plan`.
        spec: all settings; or, one by one,
        **settings: fields of :class:`SensitivitySpec`.

    Returns:
        A row for each candidate.

    Raises:
        ValueError, TypeError: an argument that cannot be; the message says what can.
        TraceError: the model's forward fails.
    """
    check_extra("calibrate", "surgery.sensitivity")
    check_model(model, weights=True)
    spec = spec or SensitivitySpec(methods=with_options(methods), **settings)
    fit, judge = split_images(images, spec.count)
    graph = record(model, input_size or tuple(fit.batches[0].shape[1:]))
    bench = Workbench(model, graph, fit, judge, spec)
    rows: list[SensitivityRow] = []
    for name in spec.methods:
        rows += bench.measured(name, bench.candidates(name, Selection(include, exclude)))
    return bench.result(rows)


def with_options(names: Sequence[str] | Options | None) -> dict[str, Mapping[str, Any]]:
    """Methods with their options; raises ValueError for a name that no method has."""
    if isinstance(names, str):
        names = (names,)
    listed = names if isinstance(names, Mapping) else {key: {} for key in names or default_methods()}
    for name in listed:
        check_choice("method", name, registered_methods())
    return {name: dict(options) for name, options in listed.items()}


class Workbench:
    """A network and images on which candidates of several methods are measured.

    Args:
        model: not changed.
        fit, judge: images for fitting and for judging.
    """

    def __init__(self, model: nn.Module, graph: ModelGraph, fit: Images, judge: Images, spec: SensitivitySpec) -> None:
        self.model, self.graph, self.fit, self.judge, self.spec = model, graph, fit, judge, spec
        decisive = (dict(spec.methods), spec.setting)
        self._store = Store(spec.file, digest_of(model, [*fit.batches, *judge.batches], *decisive))
        self._saved_seconds = None if spec.setting is None else SavedSeconds(spec.setting)
        self._skipped: list[tuple[str, str]] = []

    def candidates(self, name: str, selection: Selection, strengths: Sequence[float] | None = None) -> list[Candidate]:
        """What a method could do, site by site, as the fitting images say where it looks at images."""
        method = method_named(name)
        config = configure(method, {**getattr(method, "candidate_options", {}), **self.spec.methods[name]})
        evidence = Evidence(self.model, self.fit.evidence())
        check_evidence(name, method.evidence, evidence)
        return candidates_of(method, self.graph, selection, config, evidence, strengths or self.spec.strengths)

    def measured(self, name: str, candidates: Sequence[Candidate]) -> list[SensitivityRow]:
        """A row for each candidate of one method."""
        model, graph = self._matched(name)
        settings = FitSettings(memory=self.spec.memory / 2, dtype=_fast_dtype(model), progress=False, most=MOST)
        measurement = Measurement(
            model, graph, self.fit, self.judge, settings, self._saved_seconds, self._store.done, self._store.take
        )
        rows = measurement.rows(candidates)
        self._skipped += measurement.skipped
        return rows

    def _matched(self, name: str) -> tuple[nn.Module, ModelGraph]:
        """The network with its channels in the order that suits the method, where it knows one."""
        reorder = getattr(method_named(name), "match", None)
        if reorder is None:
            return self.model, self.graph
        matched = copied(self.model)
        reorder(plan(matched, name, input_size=self.graph.input_shape, **self.spec.methods[name]), matched, False)
        return matched, record(matched, self.graph.input_shape)

    def result(self, rows: Sequence[SensitivityRow]) -> Sensitivity:
        """All that was measured."""
        labels, model = self.judge.all_labels, self.model
        accuracy = None
        if labels is not None:
            with torch.no_grad(), eval_mode(model):
                answers = [logits_of(model(batch.to(first_weight(model)))) for batch in self.judge.batches]
            accuracy = agreement(answers, answers, labels).accuracy
        return Sensitivity(
            tuple(rows),
            graph_cost(self.graph).macs,
            sum(p.numel() for p in model.parameters()),
            accuracy,
            self.fit.count,
            self.judge.count,
            "" if self.spec.setting is None else describe(self.spec.setting),
            tuple(self._skipped),
        )


def _fast_dtype(model: nn.Module) -> torch.dtype | None:
    from surgery.calibration.passes import fast_dtype  # it needs what the extra installs

    return fast_dtype(model)
