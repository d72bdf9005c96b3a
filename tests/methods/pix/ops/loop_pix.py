"""PiX written as loops over images, output channels and pixels, from the papers' text alone."""

import math

import torch
from torch import Tensor


def loop_pix(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    tau: float = 0.5,
    fusion: str = "threshold",
    operator: str = "max+avg",
    activation: str = "sigmoid",
    stride: tuple[int, int] = (1, 1),
    grouping: str = "contiguous",
) -> Tensor:
    """y of a whole site, value by value in Python floats."""
    n, c, h, w = x.shape
    out = weight.shape[0]
    rows, columns = range(0, h, stride[0]), range(0, w, stride[1])
    y = torch.zeros(n, out, len(rows), len(columns), dtype=torch.float64)
    for image in range(n):
        z = [sum(float(x.detach()[image, k, a, b]) for a in range(h) for b in range(w)) / (h * w) for k in range(c)]
        for i in range(out):
            logit = sum(float(weight[i, k].detach().reshape(())) * z[k] for k in range(c))
            logit += 0.0 if bias is None else float(bias.detach()[i])
            p = 1 / (1 + math.exp(-logit)) if activation == "sigmoid" else 0.5 * (1 + math.tanh(logit))
            subset = range((i * c) // out, ((i + 1) * c) // out) if grouping == "contiguous" else range(i, c, out)
            for row, a in enumerate(rows):
                for column, b in enumerate(columns):
                    values = [float(x.detach()[image, k, a, b]) for k in subset]
                    y[image, i, row, column] = _fused(values, p, tau, fusion, operator)
    return y


def _fused(values: list[float], p: float, tau: float, fusion: str, operator: str) -> float:
    mean = sum(values) / len(values)
    if operator != "max+avg":
        return p * {"max": max(values), "min": min(values), "avg": mean}[operator]
    if fusion == "weighted":
        return p * max(values) + (1 - p) * mean
    return p * (max(values) if p <= tau else mean)
