"""A written file against the eager model, number by number."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from surgery.core.errors import ExportError
from surgery.deploy.formats import Run, tensors_of

# largest difference accepted, as a share of the largest value; half floats round p across tau in some channels
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3, torch.float16: 5e-2, torch.bfloat16: 2e-1}
# an untrained network's outputs may shrink to nothing, with every p at tau but for rounding: there it is no error
LEAST_SCALE = 1e-3
DRAWS = 2


class DifferentOutputsError(ExportError):
    """A file runs and computes something else."""


@dataclass(frozen=True)
class Sample:
    """An image and what the model makes of it."""

    image: Tensor
    outputs: list[Tensor]


@dataclass(frozen=True)
class Difference:
    """How far a file's outputs are from the model's: the largest distance, and the largest value of the model's."""

    distance: float = 0.0
    scale: float = 0.0

    @property
    def share(self) -> float:
        return self.distance / max(self.scale, LEAST_SCALE)


def sample(
    model: nn.Module, shapes: Iterable[Sequence[int]], dtype: torch.dtype, device: torch.device, draw: int
) -> list[Sample]:
    """Random images of these shapes, the same ones every time, with the model's outputs."""
    generator = torch.Generator().manual_seed(draw)
    images = [torch.randn(tuple(shape), generator=generator).to(device, dtype) for shape in shapes]
    return [Sample(image, [t.clone() for t in tensors_of(model(image.clone()))]) for image in images]


def check(run: Run, draws: Sequence[Sequence[Sample]], dtype: torch.dtype) -> None:
    """Raise ExportError unless a file's outputs are the model's.

    One draw of images that agrees is enough: rarely, some p is within a rounding error of tau and the file picks the
    mean where the model picks the max; an error of the export shows in every draw.
    """
    accepted = TOLERANCE[dtype]
    best = min((_worst(run, samples) for samples in draws), key=lambda difference: difference.share)
    if not best.share <= accepted:
        raise DifferentOutputsError(
            f"the file's outputs differ from the model's by up to {best.distance:.3g}, where the model's go up to "
            f"{best.scale:.3g}; {accepted:g} of that is accepted for {str(dtype).removeprefix('torch.')}"
        )


def _worst(run: Run, samples: Sequence[Sample]) -> Difference:
    differences = (_difference(sample.outputs, run(sample.image)) for sample in samples)
    return max(differences, key=lambda difference: difference.share)


def _difference(expected: Sequence[Tensor], actual: Sequence[Tensor]) -> Difference:
    shapes = [[tuple(tensor.shape) for tensor in tensors] for tensors in (expected, actual)]
    if shapes[0] != shapes[1]:
        raise DifferentOutputsError(f"the file's outputs have the shapes {shapes[1]}, the model's {shapes[0]}")
    worst = Difference()
    for one, two in zip(expected, actual, strict=True):
        worst = max(worst, _between(one.cpu().double(), two.cpu().double()), key=lambda difference: difference.share)
    return worst


def _between(expected: Tensor, actual: Tensor) -> Difference:
    if not expected.numel():
        return Difference()
    finite = expected.isfinite()
    if not finite.any():
        raise ExportError("the model's own outputs are not finite on random images: nothing to compare with")
    # NaN and infinity equal only themselves
    same = (expected == actual) | (expected.isnan() & actual.isnan())
    distance = (expected - actual).abs().nan_to_num(nan=torch.inf).masked_fill(same, 0)
    return Difference(distance.max().item(), expected[finite].abs().max().item())
