"""Try a plan on a copy without weights: what cannot be done is known before anything is."""

import copy
from collections.abc import Iterable, Sequence

from torch import nn

from surgery.core.errors import SurgeryError, TraceError
from surgery.graph import ModelGraph, record
from surgery.graph.skeleton import meta_copy
from surgery.planning.decision import Decision
from surgery.planning.sites import Skipped
from surgery.transforms.carry_out import apply
from surgery.transforms.transform import Transform


def transforms_of(decisions: Iterable[Decision]) -> tuple[Transform, ...]:
    """All transforms, in order."""
    return tuple(transform for decision in decisions for transform in decision.transforms)


def rehearse(graph: ModelGraph, decisions: Sequence[Decision]) -> tuple[list[Decision], list[Skipped]]:
    """The decisions that can be carried out, and those that cannot, with the reason.

    A decision whose block cannot be rewritten is dropped, and so is what requires it; any other failure is raised.

    Raises:
        SurgeryError: a decision does not fit the model, or the changed model fails.
    """
    trial = _trial_copy(graph, graph.modules[""])
    done: list[Decision] = []
    skipped: list[Skipped] = []
    for decision in decisions:
        absent = [name for name in decision.requires if name in {item.name for item in skipped}]
        if absent:
            skipped.append(Skipped(decision.name, f"needs what is done at {absent[0]!r}, which cannot be done"))
            continue
        rewrites = any(transform.rewrites for transform in decision.transforms)
        # only a rewriting may fail half-way through, so that is tried on a copy, which then takes over
        candidate = _trial_copy(graph, trial) if rewrites else trial
        try:
            apply(candidate, decision.transforms)
        except SurgeryError as error:
            if not rewrites:
                raise
            skipped.append(Skipped(decision.name, str(error)))
            continue
        trial = candidate
        done.append(decision)
    if done:
        _check_runs(trial, graph, done)
    return done, skipped


def rehearsed_graph(graph: ModelGraph, decisions: Iterable[Decision]) -> ModelGraph:
    """The recorded forward of the model after some decisions."""
    return record(rehearsed_model(graph, decisions), graph.input_shape)


def rehearsed_model(graph: ModelGraph, decisions: Iterable[Decision]) -> nn.Module:
    """A copy of the model after some decisions, without weights if it runs without."""
    trial = _trial_copy(graph, graph.modules[""])
    apply(trial, transforms_of(decisions))
    return trial


def _trial_copy(graph: ModelGraph, model: nn.Module) -> nn.Module:
    """A copy to try changes on: on the meta device, but for a model whose forward looks at values."""
    return copy.deepcopy(model) if graph.needs_values else meta_copy(model)


def _check_runs(trial: nn.Module, graph: ModelGraph, done: Sequence[Decision]) -> None:
    try:
        record(trial, graph.input_shape)
    except TraceError as error:
        names = ", ".join(decision.name for decision in done[:3])
        raise SurgeryError(f"{len(done)} decisions ({names}, …) would give a model that fails: {error}") from error
