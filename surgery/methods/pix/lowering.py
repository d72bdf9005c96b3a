"""A PiX layer as plain operators that every exporter knows, for a copy of the model that is only exported.

What is fastest was measured (``benchmarks/onnx_pix.py``): subsets with a stride become chunks of channels, compared
and added elementwise, which engines do fastest. A contiguous subset is a run in memory, reduced over a reshaped axis;
``surgery.export`` reorders channels first so that there are none, where it can (``surgery/deploy/interleaving.py``).
"""

import functools
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from surgery.methods.pix.ops import reference

if TYPE_CHECKING:
    from surgery.methods.pix.layer import PiX

HALF = (torch.float16, torch.bfloat16)


class ComposedPiX(nn.Module):
    """What a :class:`surgery.methods.pix.PiX` computes in eval mode, its weight standardised once and for all."""

    def __init__(self, pix: "PiX") -> None:
        super().__init__()
        self.subsets, self.stride, self.grouping = pix.out_channels, (pix.stride[0], pix.stride[1]), pix.grouping
        self.tau, self.fusion, self.operator, self.activation = pix.tau, pix.fusion, pix.operator, pix.activation
        self.weight = nn.Parameter(pix.effective_weight().detach(), requires_grad=False)
        self.bias, self.predictor_norm, self.input_norm = pix.bias, pix.predictor_norm, pix.input_norm
        even = pix.in_channels % pix.out_channels == 0
        # sums of half floats overflow where their mean does not, so there the reduction stays one operator
        self.in_chunks = self.grouping == "strided" and even and self.weight.dtype not in HALF
        self.divisor = pix.in_channels // pix.out_channels if self.in_chunks else 1

    def forward(self, x: Tensor) -> Tensor:
        if self.input_norm is not None:
            x = self.input_norm(x)
        p = self._predict(x)
        x = reference.strided(x, self.stride)
        if self.operator == "avg":
            return p / self.divisor * self._total(x)
        extreme = self._extreme(x)
        if self.operator != "max+avg":
            return p * extreme
        if self.fusion == "weighted":
            return p * extreme + (1 - p) / self.divisor * self._total(x)
        has_max = p <= self.tau
        # one product with what is chosen, not two products with 0 and 1: 0 · inf is NaN
        return torch.where(has_max, p, p / self.divisor) * torch.where(has_max, extreme, self._total(x))

    def _predict(self, x: Tensor) -> Tensor:
        """p as (N, subsets, 1, 1)."""
        logits = F.conv2d(x.mean((2, 3), keepdim=True), self.weight, self.bias)
        return reference.activate(
            logits if self.predictor_norm is None else self.predictor_norm(logits), self.activation
        )

    def _extreme(self, x: Tensor) -> Tensor:
        least = self.operator == "min"
        if self.in_chunks:
            return functools.reduce(torch.minimum if least else torch.maximum, x.split(self.subsets, 1))
        groups, _ = reference.split_subsets(x, self.subsets, self.grouping)
        return groups.amin(2) if least else groups.amax(2)

    def _total(self, x: Tensor) -> Tensor:
        """``divisor`` times the mean: dividing p is less work than dividing a map."""
        if self.in_chunks:
            return functools.reduce(torch.add, x.split(self.subsets, 1))
        return reference.subset_mean(*reference.split_subsets(x, self.subsets, self.grouping))
