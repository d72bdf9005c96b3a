"""CSNet: salient object detection with some 100,000 parameters, from maps of two resolutions in every stage.

Gao et al., Highly Efficient Salient Object Detection with 100K Parameters (ECCV 2020, arXiv:2003.05643) and its
supplement. As the published networks are built, which differ from the supplement's table 1 by a fourth block at full
resolution.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from surgery.checkpoint.build_budget import LARGEST
from surgery.checkpoint.source import register_builder
from surgery.core.errors import is_whole
from surgery.methods.octave import ConvShape, GOctConv, Scales
from surgery.methods.octave.scales import split_channels

BLOCKS = (4, 4, 6, 4)  # of each stage
FIRST_WIDTH = 20  # of ×1
GROWTH = (1, 2, 4, 4)  # of a stage's width, times the first
DILATIONS = (1, 2, 4, 8, 16)
Widths = tuple[int, ...]


@dataclass(frozen=True)
class CSNetWidths:
    """Channels of every layer, as pruning has learnt them; :meth:`of_factor` gives those to begin with.

    Attributes:
        blocks: of each stage, of each of its blocks, the channels on the fine and on the coarse map; the last block of
            a stage that the head reads has one map.
        fused: of the maps that the head makes of the last three stages.
        dilated: of each of these maps, the channels of the convolutions with dilations 1, 2, 4, 8 and 16; one of 0 is
            left out.
        head: of the map that the saliency is read from.

    Raises:
        ValueError: naming the part, its value and what would be accepted.
    """

    blocks: tuple[tuple[Widths, ...], ...]
    fused: Widths
    dilated: tuple[Widths, ...]
    head: int

    def __post_init__(self) -> None:
        for name in ("blocks", "fused", "dilated"):
            object.__setattr__(self, name, _as_tuples(getattr(self, name)))
        if not isinstance(self.blocks, tuple) or tuple(map(_length, self.blocks)) != BLOCKS:
            raise ValueError(f"blocks={self.blocks!r:.120}: {BLOCKS} blocks of the four stages are needed")
        for stage, blocks in enumerate(self.blocks):
            for number, widths in enumerate(blocks):
                maps = 1 if stage and number == BLOCKS[stage] - 1 else 2
                if _length(widths) != maps or not all(is_whole(n, 1, LARGEST) for n in widths):
                    raise ValueError(f"blocks[{stage}][{number}]={widths!r:.80}: channels of {maps} maps are needed")
        if _length(self.fused) != 3 or not all(is_whole(n, 1, LARGEST) for n in self.fused):
            raise ValueError(f"fused={self.fused!r:.80}: channels of 3 maps are needed")
        if _length(self.dilated) != 3 or not all(_dilations_fit(widths) for widths in self.dilated):
            raise ValueError(
                f"dilated={self.dilated!r:.120}: for each of 3 maps {len(DILATIONS)} numbers of channels, not all 0, "
                "are needed"
            )
        if not is_whole(self.head, 1, LARGEST):
            raise ValueError(f"head={self.head!r:.80}: a number of channels is needed")

    @classmethod
    def of_factor(cls, k: float) -> "CSNetWidths":
        """The widths of CSNet×k before pruning: 20 · k channels in the first stage, halves on the two maps."""
        first = round(FIRST_WIDTH * k)
        stages = []
        for stage, (count, growth) in enumerate(zip(BLOCKS, GROWTH, strict=True)):
            width = first * growth
            last: Widths = (width,) if stage else split_channels(width, 0.5)
            stages.append((*[split_channels(width, 0.5)] * (count - 1), last))
        fused = tuple(first * growth // 3 for growth in GROWTH[1:])
        return cls(tuple(stages), fused, tuple(_evenly(width) for width in fused), sum(fused))


def _length(value: Any) -> int:
    return len(value) if isinstance(value, tuple) else -1


def _as_tuples(value: Any) -> Any:
    return tuple(_as_tuples(item) for item in value) if isinstance(value, list | tuple) else value


def _dilations_fit(widths: Any) -> bool:
    return _length(widths) == len(DILATIONS) and all(is_whole(n, 0, LARGEST) for n in widths) and sum(widths) > 0


def _evenly(width: int) -> Widths:
    """Channels of the dilated convolutions; the last has what is left."""
    part = width // len(DILATIONS)
    return (*[part] * (len(DILATIONS) - 1), width - part * (len(DILATIONS) - 1))


class NormActs(nn.Module):
    """BatchNorm and PReLU of each of several maps."""

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.BatchNorm2d(n) for n in channels)
        self.acts = nn.ModuleList(nn.PReLU(n) for n in channels)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        return [act(norm(x)) for x, norm, act in zip(maps, self.norms, self.acts, strict=True)]


class ScaledConv(nn.Module):
    """A gOctConv, BatchNorm and PReLU; maps in and out are lists."""

    def __init__(self, scales: Scales, shape: ConvShape) -> None:
        super().__init__()
        self.conv = GOctConv(scales, shape)
        self.norm_acts = NormActs(scales.out_channels)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        outputs = self.conv(maps)
        return cast("list[Tensor]", self.norm_acts([outputs] if isinstance(outputs, Tensor) else outputs))


class DepthwiseConvs(nn.Module):
    """A depth-wise 3×3 convolution of each map (the simplified gOctConv), BatchNorm and PReLU."""

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(n, n, 3, padding=1, groups=n, bias=False) for n in channels)
        self.norm_acts = NormActs(channels)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        outputs = [conv(x) for x, conv in zip(maps, self.convs, strict=True)]
        return cast("list[Tensor]", self.norm_acts(outputs))


class ILBlock(nn.Sequential):
    """In-layer multi-scale block: a gOctConv across the maps, then two depth-wise convolutions within each."""

    def __init__(self, inputs: Widths, outputs: Widths, kernel: int, stride: int) -> None:
        across = ScaledConv(Scales(inputs, outputs), ConvShape((kernel, kernel), stride))
        super().__init__(across, DepthwiseConvs(outputs), DepthwiseConvs(outputs))


class DilatedConvs(nn.Module):
    """3×3 convolutions of several dilations side by side, BatchNorm and PReLU."""

    def __init__(self, inputs: int, widths: Widths) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(inputs, width, 3, padding=dilation, dilation=dilation, bias=False)
            for width, dilation in zip(widths, DILATIONS, strict=True)
            if width
        )
        self.norm, self.act = nn.BatchNorm2d(sum(widths)), nn.PReLU(sum(widths))

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.act(self.norm(torch.cat([conv(x) for conv in self.convs], 1))))


class CSNet(nn.Module):
    """Takes (N, 3, H, W) and gives logits (N, num_classes, H, W); their sigmoid is the saliency.

    Attributes:
        widths: of its layers as it was built; what is pruned afterwards is narrower.
    """

    def __init__(self, widths: CSNetWidths, num_classes: int = 1) -> None:
        super().__init__()
        self.widths, self.num_classes = widths, num_classes
        inputs: Widths = (3,)
        stages = []
        for stage, blocks in enumerate(widths.blocks):
            stages.append(nn.Sequential())
            for number, outputs in enumerate(blocks):
                kernel, stride = (1, 1) if number else (3, 2 if stage else 1)
                stages[-1].append(ILBlock(inputs, outputs, kernel, stride))
                inputs = outputs
        self.stages = nn.ModuleList(stages)
        read = tuple(blocks[-1][0] for blocks in widths.blocks[1:])
        self.fuse = ScaledConv(Scales(read, widths.fused), ConvShape((1, 1)))
        self.dilated = nn.ModuleList(
            DilatedConvs(width, parts) for width, parts in zip(widths.fused, widths.dilated, strict=True)
        )
        enlarged = tuple(sum(parts) for parts in widths.dilated)
        self.merge = ScaledConv(Scales(enlarged, (widths.head,)), ConvShape((1, 1)))
        self.classifier = nn.Conv2d(widths.head, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        maps, read = [x], []
        for stage in self.stages:
            maps = stage(maps)
            read.append(maps[0])
        fused = self.fuse(read[1:])
        (merged,) = self.merge([convs(y) for convs, y in zip(self.dilated, fused, strict=True)])
        logits = self.classifier(merged)
        return interpolate(logits, x.shape[-2:], mode="bilinear", align_corners=False)


@register_builder("csnet")
def csnet(k: float = 1, widths: dict[str, Any] | None = None, num_classes: int = 1) -> CSNet:
    """A :class:`CSNet`.

    Args:
        k: factor of all widths: CSNet×k; 1 and 2 are published. Not with ``widths``.
        widths: fields of :class:`CSNetWidths`, for the narrow form that pruning has learnt.
        num_classes: outputs for each pixel.

    Raises:
        ValueError, TypeError: a factor or widths that cannot be.
    """
    if not isinstance(k, int | float) or isinstance(k, bool) or not 0.25 <= k <= 64:
        raise ValueError(f"k={k!r:.80}: a factor of the widths, from 0.25 to 64, is needed")
    if not is_whole(num_classes, 1, LARGEST):
        raise ValueError(f"num_classes={num_classes!r:.80}: a whole number >= 1 is needed")
    if widths is None:
        return CSNet(CSNetWidths.of_factor(k), num_classes)
    if k != 1:
        raise ValueError(f"k={k} and widths: one of them says how wide the layers are")
    return CSNet(_widths_of(widths), num_classes)


def _widths_of(fields: Any) -> CSNetWidths:
    names = {"blocks", "fused", "dilated", "head"}
    if not isinstance(fields, dict) or set(fields) != names:
        raise ValueError(f"widths={fields!r:.80}: an object with {', '.join(sorted(names))} is needed")
    return CSNetWidths(**fields)
