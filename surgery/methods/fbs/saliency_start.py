"""Saliencies in closed form, from what the channels of a pretrained convolution give on some images."""

import torch
from torch import Tensor

SPREAD = 0.05  # standard deviation of the saliencies around 1: they rank channels and boost hardly any
RIDGE = 0.1  # of the features' mean variance, at least


def fitted_saliency(pooled: Tensor, magnitudes: Tensor) -> tuple[Tensor, Tensor]:
    """Weight (C_out, C) and bias (C_out,) of saliencies that rank channels as their magnitudes do.

    Ridge regression of log(magnitude ÷ its image's mean), brought to a standard deviation of ``SPREAD`` around 1.

    Args:
        pooled: (N, C), mean|x| of the inputs, in float64.
        magnitudes: (N, C_out), mean|y| of the outputs.
    """
    level = magnitudes.mean(1, keepdim=True).clamp_min(torch.finfo(magnitudes.dtype).tiny)
    target = (magnitudes / level + 1e-3).log()
    target = (target - target.mean()) / target.std().clamp_min(1e-6)
    mean, constant = pooled.mean(0), target.mean(0)
    centred = pooled - mean
    gram = centred.T @ centred
    ridge = gram.diagonal().mean() * (RIDGE + pooled.shape[1] / len(pooled))
    identity = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    solution = torch.linalg.solve(gram + ridge.clamp_min(1e-12) * identity, centred.T @ (target - constant))
    weight = SPREAD * solution.T
    return weight, 1 + SPREAD * constant - weight @ mean
