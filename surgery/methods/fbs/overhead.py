"""What FBS adds to a convolution (docs/performance.md, Table 1, and equations 42 to 52)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from surgery.core.surgery_layer import OpCost
from surgery.methods.fbs.winner_take_all import kept_count, mean_magnitude, mean_saliency, winner_take_all
from surgery.planning.overhead import Overhead


class Boosting(nn.Module):
    """Pooling, saliency, winners, norm, boosting and ReLU, without the convolution; (N, C, H, W) → (N, C, H, W).

    Args:
        channels: C.
        density: share of the channels that is kept.
    """

    def __init__(self, channels: int, density: float = 0.5) -> None:
        super().__init__()
        self.saliency, self.norm = nn.Linear(channels, channels), nn.BatchNorm2d(channels)
        self.count = kept_count(density, channels)

    def forward(self, x: Tensor) -> Tensor:
        saliency = F.relu(self.saliency(mean_magnitude(x)))
        factors = saliency * winner_take_all(saliency, self.count) / mean_saliency(saliency)
        return torch.relu(self.norm(x) * factors[:, :, None, None])


def added_cost(channels: int, height: int, width: int) -> OpCost:
    """Equations 42 to 52; without Σ (C − i) of the ranking (45), which the figures of Table 1 leave out.

    With it, for k = C/2, Table 1 would say 45.3 in place of 45.2 million.
    """
    places = height * width
    pooling, predictor, sigmoid = channels * places, channels * channels, 4 * channels
    norm, boosting, relu = 4 * channels * places, channels * places, channels * places
    written = channels + channels + 2 * channels * places
    return OpCost(predictor, pooling + predictor + sigmoid + norm + boosting + relu, written)


OVERHEAD = Overhead(
    "FBS",
    added_cost,
    Boosting,
    {
        (512, 112, 112): ("45.2", 51.384320),
        (512, 56, 56): ("11.5", 12.849152),
        (512, 28, 28): ("3.0", 3.215360),
    },
)
