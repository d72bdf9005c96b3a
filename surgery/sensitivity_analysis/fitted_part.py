"""One part of a network with a candidate carried out in it, fitted to what the part gave."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from surgery.calibration.calibrating import FitSettings, fit_layers
from surgery.calibration.kept_channels import KeptChannels
from surgery.core.eval_mode import eval_mode
from surgery.graph import ModelGraph, record
from surgery.planning.candidate import Candidate
from surgery.planning.cost import graph_cost
from surgery.sensitivity_analysis.resuming import sharing_copy
from surgery.transforms.carry_out import apply


@dataclass(frozen=True)
class Part:
    """A part of the original network, recorded by itself.

    Attributes:
        name: qualified; "" is the network.
        module: it.
        shape: (C, H, W) of what it takes.
    """

    name: str
    module: nn.Module
    shape: tuple[int, ...]
    graph: ModelGraph = field(repr=False)

    @classmethod
    def of(cls, model: nn.Module, name: str, shape: Sequence[int]) -> "Part":
        """Record it; raises TraceError where it does not run by itself."""
        module = model.get_submodule(name)
        return cls(name, module, tuple(shape), record(module, tuple(shape)))

    def inner(self, name: str) -> str:
        """A module's name within the part."""
        return name.removeprefix(f"{self.name}.") if self.name else name


@dataclass(frozen=True)
class FittedPart:
    """A part after a change.

    Attributes:
        module: it, with weights of its own.
        macs, params: saved; multiply-accumulates for one image.
        fitted: how many layers were fitted.
    """

    module: nn.Module
    macs: int
    params: int
    fitted: int


def fitted_part(
    model: nn.Module, part: Part, candidate: Candidate, inputs: list[Tensor], settings: FitSettings
) -> FittedPart:
    """Carry a candidate out in a copy of a part, and fit what lies behind the change within the part.

    Args:
        model: the whole network; not changed.
        inputs: batches of what the part takes.
    """
    changed = sharing_copy(model, part.module)
    kept = apply(changed, candidate.decision.transforms, choosing=True)
    module = changed.get_submodule(part.name)
    graph = record(module, part.shape)
    touched = [part.inner(name) for name in candidate.changed]
    channels = KeptChannels(part.graph, _inner(part, kept))
    rows, _ = fit_layers((module, part.module), (graph, part.graph), touched, channels, inputs, settings)
    macs = graph_cost(part.graph).macs - graph_cost(graph).macs
    params = sum(p.numel() for p in part.module.parameters()) - sum(p.numel() for p in module.parameters())
    return FittedPart(module, macs, params, sum(row.aim in ("output", "sum") for row in rows))


def _inner(part: Part, kept: Mapping[str, Sequence[int]]) -> dict[str, Sequence[int]]:
    return {part.inner(name): outputs for name, outputs in kept.items()}


@torch.no_grad()
def relative_error(part: Part, changed: nn.Module, inputs: Sequence[Tensor]) -> float:
    """Squared error of what a changed part gives, as a share of the variance of what the part gives."""
    error, values, squares, count = 0.0, 0.0, 0.0, 0
    with eval_mode(part.module), eval_mode(changed):
        for x in inputs:
            own, other = part.module(x), changed(x)
            if not isinstance(own, Tensor):
                return float("nan")
            exact = torch.promote_types(own.dtype, torch.float32)  # halves overflow; what is better stays
            own, other = own.to(exact), other.to(exact)
            error += float(F.mse_loss(other, own)) * own.numel()
            values, squares = values + float(own.sum()), squares + float(own.square().sum())
            count += own.numel()
    return error / max(squares - values**2 / count, 1e-300)
