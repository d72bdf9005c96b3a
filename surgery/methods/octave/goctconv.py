"""gOctConv: a convolution from maps of any resolutions to maps of any resolutions, with one weight tensor."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, conv2d

from surgery.core.surgery_layer import OpCost, SurgeryLayer, WeightMaps
from surgery.graph.trees import shapes_in
from surgery.methods.octave.branches import Branch, branches_of
from surgery.methods.octave.resampling import halved, larger, smaller
from surgery.methods.octave.scales import ConvShape, Scales

Maps = Tensor | Sequence[Tensor]


class GOctConv(SurgeryLayer):
    """Equation (1) of the supplement to "Highly Efficient Salient Object Detection with 100K Parameters" (ECCV 2020).

    Output j is the sum, over the inputs i that it is linked with, of a convolution with the rows of j and the columns
    of i of one weight: of the input made smaller where that is finer, and made larger afterwards where it is coarser.
    Convolutions at one resolution are run as one (:mod:`surgery.methods.octave.branches`).

    Attributes:
        weight: (sum of out_channels, sum of in_channels ÷ groups, kernel height, kernel width), the same as the plain
            convolution's over the channels of all maps.
        bias: (sum of out_channels,), added once; or None.

    Raises:
        ValueError: channels that the groups do not divide.
    """

    def __init__(self, scales: Scales, shape: ConvShape | None = None) -> None:
        super().__init__()
        shape = shape or ConvShape()
        self.scales, self.shape = scales, shape
        _check_shape(scales, shape)
        self.branches: tuple[Branch, ...] = branches_of(scales, shape.groups)
        inputs, outputs = sum(scales.in_channels), sum(scales.out_channels)
        self.weight = nn.Parameter(torch.empty(outputs, inputs // shape.groups, *shape.kernel))
        self.bias: nn.Parameter | None
        self.register_parameter("bias", nn.Parameter(torch.empty(outputs)) if shape.bias else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As torch's Conv2d is initialised."""
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.bias is not None:
            bound = 1 / math.sqrt(self.weight[0].numel())
            nn.init.uniform_(self.bias, -bound, bound)

    @classmethod
    def vanilla(
        cls, in_channels: Sequence[int], out_channels: Sequence[int], kernel: int = 3, **shape: Any
    ) -> "GOctConv":
        """OctConv (Chen et al. 2019; equation (2)): every scale from every scale."""
        return cls(Scales(tuple(in_channels), tuple(out_channels)), ConvShape((kernel, kernel), **shape))

    @classmethod
    def simplified(cls, channels: Sequence[int], kernel: int = 3, **shape: Any) -> "GOctConv":
        """Depth-wise within each scale: equation (5)."""
        return cls(Scales.within(channels), ConvShape((kernel, kernel), groups=sum(channels), **shape))

    @classmethod
    def cross_stage(cls, in_channels: Sequence[int], out_channels: Sequence[int], **shape: Any) -> "GOctConv":
        """1×1 from the maps of several stages to maps at their resolutions, or at the first of them (section 2.3)."""
        return cls(Scales(tuple(in_channels), tuple(out_channels)), ConvShape((1, 1), **shape))

    def forward(self, maps: Maps) -> Tensor | list[Tensor]:
        """From maps (N, in_channels[i], H_i, W_i) to maps (N, out_channels[j], H_j, W_j).

        One map goes in, or comes out, as a tensor; several as a list. Where a fine side is odd, the coarse one is half
        of it rounded up.

        Raises:
            ValueError: another number of maps, or sizes that do not belong together.
        """
        inputs = self._checked(maps)
        if self.plain:
            return self._convolved(inputs[0], self.weight, self.bias, self.shape.groups, self.shape.stride)
        stride = self.shape.stride
        if stride > 1 and self.shape.striding == "pool":
            inputs, stride = [_strided(x, stride) for x in inputs], 1
        sizes = self._sizes(inputs, stride)
        outputs: list[Tensor | None] = [None] * len(sizes)
        for branch in self.branches:
            y = self._of_branch(branch, inputs, stride)
            for j, part in self._parts(branch, y, sizes):
                sum_before = outputs[j]
                outputs[j] = part if sum_before is None else sum_before.add_(part)
        return _as_passed([self._biased(j, y) for j, y in enumerate(outputs) if y is not None])

    @property
    def plain(self) -> bool:
        """Whether there is one map in and one out, of one scale: a plain convolution."""
        return _is_plain(self.scales)

    def _of_branch(self, branch: Branch, inputs: Sequence[Tensor], stride: int) -> Tensor:
        """The convolution of a branch: (N, rows, H, W) at the resolution at which it runs."""
        scale = branch.outputs[0]
        operands = [
            smaller(inputs[i], max(0, self.scales.shift((i, scale))), self.shape.pooling) for i in branch.inputs
        ]
        x = operands[0] if len(operands) == 1 else torch.cat(operands, 1)
        rows, columns = slice(*branch.rows), slice(*branch.columns)
        bias = self.bias[rows] if self.bias is not None and branch.with_bias else None
        return self._convolved(x, self.weight[rows, columns], bias, branch.groups, stride)

    def _convolved(self, x: Tensor, weight: Tensor, bias: Tensor | None, groups: int, stride: int) -> Tensor:
        return conv2d(x, weight, bias, stride, self.shape.padding, self.shape.dilation, groups)

    def _parts(self, branch: Branch, y: Tensor, sizes: Sequence[tuple[int, int]]) -> Iterator[tuple[int, Tensor]]:
        """What each output of a branch gets of its convolution, at the output's resolution."""
        if not branch.spreads:
            yield branch.outputs[0], y
            return
        for j, part in zip(
            branch.outputs, y.split([self.scales.out_channels[j] for j in branch.outputs], 1), strict=True
        ):
            times = -self.scales.shift((branch.inputs[0], j))
            yield j, larger(part, times, sizes[j], self.shape.upsampling)

    def _biased(self, j: int, y: Tensor) -> Tensor:
        """An output with its bias, where no branch has added it."""
        if self.bias is None or any(branch.with_bias and j in branch.outputs for branch in self.branches):
            return y
        return y + self.bias[slice(*self.scales.rows(j))].to(y.dtype)[:, None, None]

    def _checked(self, maps: Maps) -> list[Tensor]:
        inputs = [maps] if isinstance(maps, Tensor) else list(maps)
        expected = self.scales.in_channels
        if [x.shape[1] for x in inputs] != list(expected):
            raise ValueError(
                f"maps of {[x.shape[1] for x in inputs]} channels: {len(expected)} of {list(expected)} are needed"
            )
        return inputs

    def _sizes(self, inputs: Sequence[Tensor], stride: int) -> list[tuple[int, int]]:
        """Height and width of every output; raises ValueError for inputs that are not halves of each other."""
        in_scales, out_scales = self.scales.in_scales, self.scales.out_scales
        finest = in_scales.index(self.scales.finest)
        whole = (inputs[finest].shape[-2], inputs[finest].shape[-1])
        for x, scale in zip(inputs, in_scales, strict=True):
            fitting = halved(whole, scale - self.scales.finest)
            if tuple(x.shape[-2:]) != fitting:
                raise ValueError(
                    f"a map of scale {scale} is {x.shape[-2]}×{x.shape[-1]}: beside {whole[0]}×{whole[1]} of scale "
                    f"{self.scales.finest} it must be {fitting[0]}×{fitting[1]}"
                )
        strided = (-(-whole[0] // stride), -(-whole[1] // stride))
        return [halved(strided, scale - self.scales.finest) for scale in out_scales]

    def cost(self, inputs: Any, outputs: Any) -> OpCost:
        """Multiply-accumulates by equations (3), (4) and (6): of every link's convolution, at the coarser resolution.

        Poolings, enlargements and sums count as operations, one for each value that is read or added, and their
        results as memory.
        """
        read, written = list(shapes_in(inputs)), list(shapes_in(outputs))
        macs = sum(self.link_macs(inputs, outputs).values())
        return OpCost(macs, macs + self._resampled(read, written), sum(math.prod(shape[1:]) for shape in written))

    def link_macs(self, inputs: Any, outputs: Any) -> dict[tuple[int, int], int]:
        read, written = list(shapes_in(inputs)), list(shapes_in(outputs))
        macs = {}
        for i, j in self.scales.links:
            height, width = written[j][-2:] if self.scales.shift((i, j)) >= 0 else self._strided_size(read[i])
            fan_in = self.scales.in_channels[i] // self._groups_of(i) * math.prod(self.shape.kernel)
            macs[i, j] = height * width * self.scales.out_channels[j] * fan_in
        return macs

    def output_rows(self) -> tuple[int, ...]:
        return self.scales.out_channels

    def weight_maps(self) -> WeightMaps | None:
        """None of a grouped one."""
        return None if self.shape.groups > 1 else WeightMaps(self.scales.in_channels, self.scales.out_channels)

    def narrowed(self, maps: WeightMaps) -> dict[str, Any]:
        scales = replace(self.scales, in_channels=maps.in_channels, out_channels=maps.out_channels)
        return {"scales": scales, "branches": branches_of(scales, self.shape.groups)}

    def _strided_size(self, shape: Sequence[int]) -> tuple[int, int]:
        stride = self.shape.stride
        return -(-shape[-2] // stride), -(-shape[-1] // stride)

    def _groups_of(self, i: int) -> int:
        """Groups of the convolutions that read input ``i``."""
        if not self.scales.separate or self.shape.groups == 1:
            return self.shape.groups
        return self.branches[i].groups

    def _resampled(self, read: Sequence[Sequence[int]], written: Sequence[Sequence[int]]) -> int:
        shifts = {link: self.scales.shift(link) for link in self.scales.links}
        pooled = sum(math.prod(read[i][1:]) for (i, _), shift in shifts.items() if shift > 0)
        enlarged = sum(2 * math.prod(written[j][1:]) for (_, j), shift in shifts.items() if shift < 0)
        return pooled + enlarged

    def extra_repr(self) -> str:
        return f"{self.scales}, {self.shape}"


def _strided(x: Tensor, stride: int) -> Tensor:
    return avg_pool2d(x, stride, ceil_mode=True, count_include_pad=False)


def _is_plain(scales: Scales) -> bool:
    return len(scales.in_channels) == len(scales.out_channels) == 1 and not scales.shift((0, 0))


def _as_passed(maps: list[Tensor]) -> Tensor | list[Tensor]:
    return maps[0] if len(maps) == 1 else maps


def _check_shape(scales: Scales, shape: ConvShape) -> None:
    """Raise ValueError for channels that groups do not divide, or a padding that several resolutions do not allow."""
    groups = shape.groups
    maps = {"in_channels": scales.in_channels, "out_channels": scales.out_channels}
    for name, channels in maps.items():
        size = sum(channels) // groups if scales.separate else groups  # of a group, or what each map is divided by
        if groups > 1 and (size == 0 or any(n % size for n in channels) or sum(channels) % groups):
            raise ValueError(f"{name}={list(channels)}: {groups} groups cannot be formed, each on one map")
    same = tuple(shape.dilation * (side - 1) / 2 for side in shape.kernel)
    if not _is_plain(scales) and shape.padding != same:
        raise ValueError(
            f"padding={shape.padding}: between several resolutions {same} is needed, which keeps the size at stride 1"
        )
