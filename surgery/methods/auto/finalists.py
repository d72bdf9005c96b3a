"""Mixtures that are carried out, calibrated and compared on images that nothing was fitted on."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import nn

from surgery.calibration import calibrate
from surgery.core.checked_model import first_weight
from surgery.core.eval_mode import eval_mode
from surgery.core.run_setting import Setting
from surgery.deploy.engines import timed_in_turn
from surgery.graph import ModelGraph
from surgery.graph.skeleton import copied
from surgery.planning.decision import Decision
from surgery.planning.plan import Plan
from surgery.planning.registry import method_named
from surgery.planning.rehearsal import transforms_of
from surgery.sensitivity_analysis.agreement import Agreement, agreement, logits_of
from surgery.sensitivity_analysis.images import Images
from surgery.transforms.carry_out import apply

SECONDS = 3.0  # of measuring both networks


@dataclass(frozen=True)
class Finalist:
    """A mixture at the budget.

    Attributes:
        name: how it was found, in a few words.
        decisions: it.
        reached: share of the budget that is left.
        predicted: the same, as the sum of what was measured one by one; None where nothing was predicted.
        seen: agreement with the original after calibration; None before.
    """

    name: str
    decisions: tuple[Decision, ...]
    reached: float
    predicted: float | None = None
    seen: Agreement | None = field(default=None, compare=False)

    def __str__(self) -> str:
        seen = "" if self.seen is None else f": KL {self.seen.kl:.4f}, same class {100 * self.seen.same:.1f} %"
        return f"{self.name}{seen}"


def judged(finalist: Finalist, plan: Plan, model: nn.Module, fit: Images, judge: Images) -> Finalist:
    """The finalist carried out on a copy, calibrated, and compared with the original.

    Args:
        plan: of the finalist's decisions.
        model: the original; not changed.
    """
    original = copied(model)
    reorder = getattr(method_named(plan.method), "match", None)
    if reorder is not None:
        reorder(plan, original, False)
    changed = copied(original)
    kept = apply(changed, transforms_of(finalist.decisions), choosing=True)
    calibrate(changed, original, fit.batches, kept=kept, images=None, progress=False)
    return replace(finalist, seen=compared(changed, model, judge))


@torch.no_grad()
def compared(changed: nn.Module, original: nn.Module, judge: Images) -> Agreement:
    """How far a changed network's answers are from the original's."""
    batches = [batch.to(first_weight(original)) for batch in judge.batches]
    with eval_mode(changed), eval_mode(original):
        answers, originals = ([logits_of(network(batch)) for batch in batches] for network in (changed, original))
    return agreement(answers, originals, judge.all_labels)


def time_share(graph: ModelGraph, decisions: Sequence[Decision], setting: Setting) -> tuple[float, float]:
    """Time of the changed network as a share of the original's, measured in turn, and seconds of the original."""
    model = graph.modules[""]
    changed = copied(model)
    apply(changed, transforms_of(decisions), choosing=True)
    x = torch.randn(setting.batch, *graph.input_shape[-3:])
    with tempfile.TemporaryDirectory() as folder:
        timing = timed_in_turn({"original": model, "changed": changed}, x, setting, Path(folder), SECONDS)
    return timing.ratio("changed", "original")[0], timing.median("original")
