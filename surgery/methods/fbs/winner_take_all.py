"""Which channels are kept for an image, and their saliencies (FBS, Eq. 4-6)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def kept_count(density: float, channels: int) -> int:
    """⌈d · C⌉, and at least one; a product that only rounding lifts above a whole number is that number."""
    return max(1, math.ceil(round(density * channels, 6)))


def winner_take_all(saliency: Tensor, count: int) -> Tensor:
    """The ``count`` channels of each image with the largest saliency; of equal ones the first.

    Args:
        saliency: (N, C), finite.
        count: 1 to C.

    Returns:
        (N, C) bool with exactly ``count`` True in each row. Operators that exporters know, and no gradient.
    """
    saliency = saliency.detach()
    least = saliency.topk(count, dim=1).values[:, -1:]
    above, level = saliency > least, saliency == least
    room = count - above.sum(1, keepdim=True)
    return above | (level & (level.cumsum(1) <= room))


def active_indices(mask: Tensor, count: int) -> Tensor:
    """(N, count): where a mask with ``count`` True in each row is True, in ascending order; no device waits for it."""
    channels = mask.shape[1]
    order = torch.arange(channels, 0, -1, device=mask.device)  # all different, so that no tie hangs on the device
    return (mask * channels + order).topk(count, dim=1).indices


def winners(saliency: Tensor, count: int) -> Tensor:
    """(N, count): the channels of :func:`winner_take_all` in ascending order, in fewer operators; not for exporters."""
    order = torch.sort(saliency, dim=1, descending=True, stable=True).indices
    return order[:, :count].sort(dim=1).values


def saliencies(pooled: Tensor, weight: Tensor, bias: Tensor, constant: float) -> Tensor:
    """(N, C_out): ReLU(W · pooled + bias + constant) of (N, C), in float32 at least.

    Also of half precisions and where autocast is on: near 1 these tell apart no saliencies that differ by less than a
    hundredth, and would choose other channels.
    """
    device = pooled.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        with torch.autocast(device, enabled=False):
            return saliencies(pooled, weight, bias, constant)
    dtype = torch.promote_types(weight.dtype, torch.float32)
    return F.linear(pooled.to(dtype), weight.to(dtype), bias.to(dtype) + constant).relu_()


def mean_saliency(saliency: Tensor) -> Tensor:
    """(N, 1): the mean over the channels, never zero."""
    mean = saliency.mean(1, keepdim=True)
    return mean.clamp_min(torch.finfo(mean.dtype).tiny)


def mean_magnitude(x: Tensor, non_negative: bool = False) -> Tensor:
    """(N, C): mean of |x| (N, C, H, W) over the places, accumulated in float32 at least; no map is written.

    Args:
        non_negative: it is, so that the mean will do, which takes a tenth of the time.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    if non_negative:
        return x.mean((2, 3), dtype=dtype)
    return torch.linalg.vector_norm(x, 1, (2, 3), dtype=dtype) / (x.shape[2] * x.shape[3])
