"""What one module of a method adds to a network, by the formulas of a paper, for ``python -m surgery overhead``."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import nn

from surgery.core.surgery_layer import OpCost

Size = tuple[int, int, int]  # channels, height, width


@dataclass(frozen=True)
class Overhead:
    """A method's attribute ``overhead``.

    Attributes:
        label: of the module in papers.
        cost: FLOPs (a multiply-accumulate counts once) and numbers written, of one image of such a size.
        layer: the module itself, which takes and gives maps of so many channels.
        published: by size, million FLOPs as they are printed and megabytes (10⁶) in float32.
    """

    label: str
    cost: Callable[[int, int, int], OpCost]
    layer: Callable[[int], nn.Module]
    published: Mapping[Size, tuple[str, float]] = field(default_factory=dict)
