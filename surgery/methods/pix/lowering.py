"""A PiX layer as plain operators that every exporter knows, for a copy of the model that is only exported.

Which operators is measured (``benchmarks/onnx_pix.py``): a contiguous subset is a run in memory, where a reduction over
a reshaped axis is cheapest; a strided one is not, and becomes whole chunks of channels, compared and added elementwise.
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

    def forward(self, x: Tensor) -> Tensor:
        if self.input_norm is not None:
            x = self.input_norm(x)
        p = self._predict(x)
        x = reference.strided(x, self.stride)
        if self.operator == "avg":
            return p * self._mean(x)
        extreme = self._extreme(x)
        if self.operator != "max+avg":
            return p * extreme
        if self.fusion == "weighted":
            return p * extreme + (1 - p) * self._mean(x)
        picks = p <= self.tau
        if self.in_chunks:  # a sum in place of the mean: its division is of p, which is small
            scale = torch.where(picks, p, p * (self.subsets / x.shape[1]))
            return scale * torch.where(picks, extreme, self._sum(x))
        # one product with what is chosen, not two products with 0 and 1: 0 · inf is NaN
        return p * torch.where(picks, extreme, self._mean(x))

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

    def _mean(self, x: Tensor) -> Tensor:
        if self.in_chunks:
            return self._sum(x) * (self.subsets / x.shape[1])
        return reference.subset_mean(*reference.split_subsets(x, self.subsets, self.grouping))

    def _sum(self, x: Tensor) -> Tensor:
        """Of each strided subset, chunk by chunk."""
        return functools.reduce(torch.add, x.split(self.subsets, 1))
