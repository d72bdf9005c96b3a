"""What one PiX module costs (PiX supplement, D.4 and Table 1, at ζ = 1)."""

from torch import nn

from surgery.core.surgery_layer import OpCost
from surgery.methods.pix.layer import PiX
from surgery.planning.overhead import Overhead


def module_cost(channels: int, height: int, width: int, zeta: int = 1) -> OpCost:
    """Equations 53 to 56; memory by 57 to 59, whose last term holds for ζ = 1: C·H·W / ζ is written."""
    places, squeezed = height * width, channels // zeta
    pooling, predictor, sigmoid = channels * places, squeezed * channels, 4 * squeezed
    fusion = (zeta - 1) * squeezed * places
    return OpCost(predictor, pooling + predictor + sigmoid + fusion, channels + squeezed + squeezed * places)


def _layer(channels: int) -> nn.Module:
    return PiX(channels, channels)


OVERHEAD = Overhead(
    "PiX",
    module_cost,
    _layer,
    {
        (512, 112, 112): ("6.6", 25.694208),
        (512, 56, 56): ("1.8", 6.426624),
        (512, 28, 28): ("0.6", 1.609728),
    },
)
