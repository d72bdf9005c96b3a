"""Make layers narrower, consistently."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from surgery.core.errors import SurgeryError, is_whole
from surgery.transforms.field_checks import LARGEST
from surgery.transforms.modules_by_name import submodule
from surgery.transforms.transform import CALL, PER_INDEX, UNSTORED, Choice, Transform, transform

Widths = dict[str, list[int | None]]
Kept = tuple[list[int] | None, list[int] | None]
Chooser = Callable[[nn.Module], dict[str, Kept]]


@transform("narrow")
@dataclass(frozen=True)
class Narrow(Transform):
    """Slices of the parameters of modules.

    Attributes:
        widths: module → [in, out] that it has then; None where a side stays.
        chooser: which channels (in, out) each module keeps, by the weights that a model has; without it the first ones.
    """

    widths: Widths
    chooser: Chooser | None = field(default=None, compare=False, repr=False, metadata=UNSTORED)

    def __post_init__(self) -> None:
        object.__setattr__(self, "widths", _checked_widths(self.widths))

    def choose(self, model: nn.Module) -> Choice:
        return None if self.chooser is None else self.chooser(model)

    def apply(self, model: nn.Module, choice: Choice = None) -> None:
        narrow_modules(model, self.widths, choice)

    def changed(self) -> tuple[str, ...]:
        return tuple(self.widths)

    def resized(self) -> tuple[str, ...]:
        return tuple(self.widths)

    def kept_outputs(self, choice: Choice) -> dict[str, list[int]]:
        return {} if choice is None else {name: out for name, (_, out) in choice.items() if out is not None}

    def work(self, model: nn.Module) -> int:
        sides = [width for pair in self.widths.values() for width in pair if width is not None]
        return PER_INDEX * sum(sides) + CALL * len(sides)


def _checked_widths(widths: Any) -> Widths:
    valid = isinstance(widths, Mapping) and all(
        isinstance(sides, list | tuple) and len(sides) == 2 and all(n is None or is_whole(n, 1, LARGEST) for n in sides)
        for sides in widths.values()
    )
    if not valid:
        raise ValueError(f"widths={widths!r:.120}: module → [in, out], each a whole number >= 1 or null, is needed")
    return {str(name): list(sides) for name, sides in widths.items()}


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
