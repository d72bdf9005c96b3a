"""A method's layer that takes and gives maps of two resolutions, and a network around it."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from surgery.core.surgery_layer import OpCost, SurgeryLayer
from surgery.transforms.transform import Transform, transform

CHANNELS = 4


class TwoScales(SurgeryLayer):
    """Maps of C channels at H × W and at half of it, each convolved with both (an octave convolution).

    It takes and gives ``[high, low]``, or with ``named`` ``{"high": ..., "low": ...}``.
    """

    def __init__(self, named: bool = False) -> None:
        super().__init__()
        self.named = named
        self.parts = nn.ModuleDict(
            {name: nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=False) for name in ("hh", "hl", "lh", "ll")}
        )
        self.seen: list[tuple[Any, Any]] = []  # trees of shapes that cost() was asked about

    def forward(self, maps: Any) -> Any:
        high, low = (maps["high"], maps["low"]) if self.named else maps
        up = F.interpolate(self.parts["lh"](low), scale_factor=2)
        convolved = self.parts["hh"](high) + up, self.parts["hl"](F.avg_pool2d(high, 2)) + self.parts["ll"](low)
        return dict(zip(("high", "low"), convolved, strict=True)) if self.named else list(convolved)

    def cost(self, inputs: Any, outputs: Any) -> OpCost:
        self.seen.append((inputs, outputs))
        high, low = (outputs["high"], outputs["low"]) if self.named else outputs
        filters = 9 * CHANNELS * CHANNELS
        macs = filters * (high[2] * high[3] + 3 * low[2] * low[3])
        return OpCost(macs, macs, sum(channels * height * width for _, channels, height, width in (high, low)))


class TwoScaleNet(nn.Module):
    """A stem, a :class:`TwoScales` layer, and a 1×1 convolution and classifier behind its two maps."""

    def __init__(self, named: bool = False) -> None:
        super().__init__()
        self.named = named
        self.stem = nn.Conv2d(3, CHANNELS, 3, padding=1)
        self.octave = TwoScales(named)
        self.fuse = nn.Conv2d(2 * CHANNELS, 8, 1)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        high = self.stem(x).relu()
        low = F.avg_pool2d(high, 2)
        if self.named:
            maps = self.octave({"high": high, "low": low})
            high, low = maps["high"], maps["low"]
        else:
            high, low = self.octave([high, low])
        x = self.fuse(torch.cat([high, F.interpolate(low, scale_factor=2)], 1))
        return self.fc(x.relu().mean((2, 3)))


@transform("tests_two_scales")
@dataclass(frozen=True)
class PutTwoScales(Transform):
    """What a history says of a network whose layer ``octave`` surgery put in."""

    named: bool = False

    def apply(self, model: nn.Module, choice: Any = None) -> None:
        model.octave = TwoScales(self.named)

    def added(self) -> tuple[str, ...]:
        return ("octave",)

    def changed(self) -> tuple[str, ...]:
        return ("octave",)
