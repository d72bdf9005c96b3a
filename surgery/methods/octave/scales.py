"""What a gOctConv reads and writes: maps of several resolutions, the channels of each, and the links between them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from surgery.core.errors import check_choice, is_whole

POOLINGS = ("max", "average")
UPSAMPLINGS = ("bilinear", "nearest")
STRIDINGS = ("pool", "conv")
COARSEST = 16  # more halvings than any map has


@dataclass(frozen=True)
class Scales:
    """Maps that go in and come out. Scale s has 1 / 2^s of the height and width of scale 0.

    Attributes:
        in_channels, out_channels: of each map; a map without channels is not passed at all.
        in_scales, out_scales: of each map; default: 0, 1, 2, …
        links: pairs (i, j) of positions: output j is computed from input i. Default: every pair.

    Raises:
        ValueError, TypeError: naming the argument, its value and what would be accepted.
    """

    in_channels: tuple[int, ...]
    out_channels: tuple[int, ...]
    in_scales: tuple[int, ...] = ()
    out_scales: tuple[int, ...] = ()
    links: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        for side in ("in", "out"):
            channels = _whole_numbers(f"{side}_channels", getattr(self, f"{side}_channels"), 1)
            default = range(len(channels))
            scales = _whole_numbers(f"{side}_scales", getattr(self, f"{side}_scales") or default, 0)
            if len(scales) != len(channels) or len(set(scales)) < len(scales) or max(scales) > COARSEST:
                raise ValueError(
                    f"{side}_scales={list(scales)}: {len(channels)} different scales up to {COARSEST} are needed, one "
                    f"for each of {side}_channels={list(channels)}"
                )
            object.__setattr__(self, f"{side}_channels", channels)
            object.__setattr__(self, f"{side}_scales", scales)
        object.__setattr__(self, "links", self._checked_links())

    def _checked_links(self) -> tuple[tuple[int, int], ...]:
        inputs, outputs = range(len(self.in_channels)), range(len(self.out_channels))
        if not self.links:
            return tuple((i, j) for j in outputs for i in inputs)
        links = tuple(sorted({(int(i), int(j)) for i, j in self.links}, key=lambda link: link[::-1]))
        wrong = [link for link in links if link[0] not in inputs or link[1] not in outputs]
        if wrong:
            raise ValueError(
                f"links has {wrong[0]}: pairs of a position in {len(inputs)} inputs and in {len(outputs)} outputs are "
                "needed"
            )
        alone = [j for j in outputs if j not in {link[1] for link in links}]
        if alone:
            raise ValueError(f"links={list(links)}: output {alone[0]} is computed from no input")
        return links

    @classmethod
    def within(cls, channels: Sequence[int], scales: Sequence[int] = ()) -> "Scales":
        """The same maps in and out, each computed from itself alone: the document's simplified instance, (5)."""
        own = tuple(scales)
        return cls(tuple(channels), tuple(channels), own, own, tuple((i, i) for i in range(len(channels))))

    @property
    def finest(self) -> int:
        """The least scale of the inputs."""
        return min(self.in_scales)

    def shift(self, link: tuple[int, int]) -> int:
        """How many times a link halves height and width; negative where it doubles them."""
        return self.out_scales[link[1]] - self.in_scales[link[0]]

    def columns(self, i: int) -> tuple[int, int]:
        """Where the channels of input ``i`` begin and end among those of all inputs."""
        return sum(self.in_channels[:i]), sum(self.in_channels[: i + 1])

    def rows(self, j: int) -> tuple[int, int]:
        """Where the channels of output ``j`` begin and end among those of all outputs."""
        return sum(self.out_channels[:j]), sum(self.out_channels[: j + 1])

    @property
    def separate(self) -> bool:
        """Whether every output is computed from the input of its own position and scale alone."""
        return (
            len(self.in_channels) == len(self.out_channels)
            and self.in_scales == self.out_scales
            and all(i == j for i, j in self.links)
        )


@dataclass(frozen=True)
class ConvShape:
    """How the convolutions of a gOctConv slide.

    Attributes:
        kernel: (height, width).
        stride: 1 or more.
        padding: (height, width); default: what keeps the size at stride 1.
        dilation: 1 or more.
        groups: of each link's convolution. Where every output is computed from its own input alone, the groups are
            those of the one convolution over the channels of all maps, in order; each lies on one map.
        bias: whether there is one.
        pooling: ``max`` or ``average``: what makes a map smaller.
        upsampling: ``bilinear`` or ``nearest``: what makes one larger.
        striding: ``pool``: maps are pooled (average) by the stride, then convolved with stride 1, as published;
            ``conv``: the convolutions have the stride, which is what a pretrained one did. A single map in and out is
            always convolved with the stride.

    Raises:
        ValueError: naming the argument, its value and what would be accepted.
    """

    kernel: tuple[int, int] = (3, 3)
    stride: int = 1
    padding: tuple[int, int] = ()  # type: ignore[assignment]
    dilation: int = 1
    groups: int = 1
    bias: bool = False
    pooling: str = "max"
    upsampling: str = "bilinear"
    striding: str = "pool"

    def __post_init__(self) -> None:
        object.__setattr__(self, "kernel", _pair("kernel", self.kernel, 1))
        for name in ("stride", "dilation", "groups"):
            if not is_whole(getattr(self, name), 1):
                raise ValueError(f"{name}={getattr(self, name)!r}: a whole number >= 1 is needed")
        same = tuple(self.dilation * (side - 1) // 2 for side in self.kernel)
        if self.padding == () and any(side % 2 == 0 for side in self.kernel):
            raise ValueError(f"kernel={self.kernel}: an even kernel needs a padding=, which there is no usual one for")
        object.__setattr__(self, "padding", _pair("padding", same if self.padding == () else self.padding, 0))
        check_choice("pooling", self.pooling, POOLINGS)
        check_choice("upsampling", self.upsampling, UPSAMPLINGS)
        check_choice("striding", self.striding, STRIDINGS)


def _pair(name: str, value: Any, least: int) -> tuple[int, int]:
    pair = (value, value) if is_whole(value) else value
    if not isinstance(pair, tuple | list) or len(pair) != 2 or not all(is_whole(n, least) for n in pair):
        raise ValueError(f"{name}={value!r}: a whole number >= {least}, or two, are needed")
    return int(pair[0]), int(pair[1])


def _whole_numbers(name: str, values: Iterable[Any], least: int) -> tuple[int, ...]:
    if isinstance(values, int | str) or not isinstance(values, Iterable):
        raise TypeError(f"{name}={values!r}: a sequence of whole numbers, one for each map, is needed")
    numbers = tuple(values)
    if not numbers or not all(is_whole(number, least) for number in numbers):
        raise ValueError(f"{name}={list(numbers)}: whole numbers >= {least}, at least one, are needed")
    return tuple(int(number) for number in numbers)


def split_channels(channels: int, alpha: float) -> tuple[int, ...]:
    """Channels of a fine and a coarse map, of which the coarse one has the share ``alpha``, rounded; one of them whole
    where the other would have none.
    """
    coarse = round(alpha * channels)
    return tuple(count for count in (channels - coarse, coarse) if count)
