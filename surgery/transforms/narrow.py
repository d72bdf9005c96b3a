"""Narrow channel widths of a model consistently: decide new widths, choose the channels, slice the tensors."""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from surgery.core.errors import SurgeryError
from surgery.graph.channels import Channels, Group
from surgery.planning.importance import CRITERIA, strongest
from surgery.transforms.edit import Edit, Kept, submodule

Widths = dict[str, list[int | None]]


@dataclass
class Narrowing:
    """New widths of channel groups; ``refused`` says why a group keeps its own."""

    channels: Channels
    width: dict[Group, int] = field(default_factory=dict)

    def refuse(self, conv: str) -> str:
        """Why the output of a convolution cannot get narrower, or ""."""
        return self.channels.writes[conv][0].root().frozen

    def shrink(self, conv: str, factor: float) -> int:
        """Divide the output width of a convolution by ``factor`` (to the nearest allowed count); returns the width."""
        group = self.channels.writes[conv][0].root()
        if group not in self.width:
            blocks = max(1, round(group.width / factor / group.multiple))
            self.width[group] = min(group.width, blocks * group.multiple)
        return self.width[group]

    def _touched(self, segments: list[Group]) -> bool:
        return any(group.root() in self.width for group in segments)

    def widths(self) -> Widths:
        """New (in, out) widths of every module that changes; None where a side stays."""
        result: Widths = {}
        for name in dict.fromkeys([*self.channels.reads, *self.channels.writes]):
            sides: list[int | None] = []
            for segments in (self.channels.reads.get(name, []), self.channels.writes.get(name, [])):
                changed = self._touched(segments)
                sides.append(sum(self.width.get(g.root(), g.width) for g in segments) if changed else None)
            if any(side is not None for side in sides):
                result[name] = sides
        return result

    def edit(self) -> Edit:
        """The narrowing as one edit of a plan."""
        return Edit("narrow", "", arguments={"widths": self.widths()})

    def choose(self, model: nn.Module, importance: str) -> dict[str, Kept]:
        """Indices (in, out) that each changed module keeps, by the importance of the filters that write them."""
        chosen = {
            group: strongest(
                CRITERIA[importance]([submodule(model, name).weight for name in group.producers]), width, group.multiple
            )
            for group, width in self.width.items()
        }
        return {name: self.kept(name, chosen) for name in self.widths()}

    def kept(self, name: str, chosen: dict[Group, list[int]]) -> Kept:
        """Indices (in, out) that a module keeps where groups keep the ``chosen`` ones; a group left out keeps all."""
        sides: list[list[int] | None] = []
        for segments in (self.channels.reads.get(name, []), self.channels.writes.get(name, [])):
            if not self._touched(segments):
                sides.append(None)
                continue
            kept: list[int] = []
            offset = 0
            for group in segments:
                kept += [offset + i for i in chosen.get(group.root(), range(group.width))]
                offset += group.width
            sides.append(kept)
        return sides[0], sides[1]


def narrow_modules(model: nn.Module, widths: Widths, keep: dict[str, Kept] | None) -> None:
    """Slice the named modules in place to their new (in, out) widths.

    Args:
        keep: indices per module; without it the first channels of each (of each group of a grouped convolution).

    Raises:
        SurgeryError: a module is missing, of a kind that cannot be narrowed, or narrower than asked for.
    """
    for name, (into, out) in widths.items():
        module = submodule(model, name)
        kept_in, kept_out = keep[name] if keep is not None else _first(module, into, out)
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            _narrow_norm(module, kept_in or [])
        elif isinstance(module, nn.Conv2d):
            _narrow_conv(module, kept_in, kept_out)
        elif isinstance(module, nn.Linear):
            _narrow_linear(module, kept_in, kept_out)
        else:
            raise SurgeryError(f"{name!r}: a {type(module).__name__} cannot be narrowed")


def _first(module: nn.Module, into: int | None, out: int | None) -> Kept:
    groups = module.groups if isinstance(module, nn.Conv2d) else 1
    sides: list[list[int] | None] = []
    full = (
        getattr(module, "in_channels", getattr(module, "in_features", getattr(module, "num_features", 0))),
        getattr(module, "out_channels", getattr(module, "out_features", 0)),
    )
    for size, width in zip(full, (into, out), strict=True):
        if width is None:
            sides.append(None)
            continue
        if width > size:
            raise SurgeryError(f"a {type(module).__name__} of width {size} cannot be narrowed to {width}")
        blocks = 1 if size == groups else groups
        per, kept = size // blocks, width // blocks
        sides.append([b * per + i for b in range(blocks) for i in range(kept)])
    return sides[0], sides[1]


def _take(owner: nn.Module, name: str, index: list[int] | Tensor, dim: int = 0) -> None:
    """Replace a parameter or buffer by its slices along ``dim``."""
    tensor = getattr(owner, name, None)
    if tensor is None:
        return
    kept = tensor.detach().index_select(dim, torch.as_tensor(index, device=tensor.device)).clone()
    setattr(owner, name, nn.Parameter(kept, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else kept)


def _narrow_norm(norm: nn.modules.batchnorm._BatchNorm, kept: list[int]) -> None:
    for name in ("weight", "bias", "running_mean", "running_var"):
        _take(norm, name, kept)
    norm.num_features = len(kept)


def _narrow_linear(linear: nn.Linear, kept_in: list[int] | None, kept_out: list[int] | None) -> None:
    if kept_in is not None:
        _take(linear, "weight", kept_in, 1)
        linear.in_features = len(kept_in)
    if kept_out is not None:
        _take(linear, "weight", kept_out)
        _take(linear, "bias", kept_out)
        linear.out_features = len(kept_out)


def _narrow_conv(conv: nn.Conv2d, kept_in: list[int] | None, kept_out: list[int] | None) -> None:
    depthwise = conv.groups == conv.in_channels == conv.out_channels
    if kept_in is not None and not depthwise:
        if conv.groups > 1:
            _take_grouped(conv, kept_in)
        else:
            _take(conv, "weight", kept_in, 1)
    if kept_in is not None:
        conv.in_channels = len(kept_in)
    if kept_out is not None:
        for name in [n for n, p in conv.named_parameters(recurse=False)]:
            _take(conv, name, kept_out)
        conv.out_channels = len(kept_out)
    if depthwise:
        conv.groups = conv.in_channels


def _take_grouped(conv: nn.Conv2d, kept: list[int]) -> None:
    """Input channels of a grouped convolution: as many from each group, other ones in each."""
    weight, per = conv.weight.detach(), conv.in_channels // conv.groups
    index = torch.tensor(kept, device=weight.device).reshape(conv.groups, -1) % per
    blocks = weight.unflatten(0, (conv.groups, -1))
    rows = [block.index_select(1, chosen) for block, chosen in zip(blocks, index, strict=True)]
    conv.weight = nn.Parameter(torch.stack(rows).flatten(0, 1), conv.weight.requires_grad)
