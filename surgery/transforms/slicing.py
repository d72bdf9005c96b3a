"""Slice the channels of a model in place: every parameter, buffer and number of its modules that they index.

What stays is written as :class:`Sizes`, which a file can hold: from them a model is rebuilt on the meta device before
its tensors are loaded. Which channels stay (:data:`Keep`) is known only where there are weights to slice.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torchvision
from torch import Tensor, nn

from surgery.core.errors import SurgeryError, is_whole
from surgery.core.surgery_layer import SurgeryLayer, WeightMaps
from surgery.graph.kinds import NORMS

Widths = dict[str, list[int | None]]
Keep = Mapping[tuple[str, str], Mapping[int, Any]]
"""(module, parameter or buffer) → {dimension: indices that stay}; (groups, n) indices of a grouped convolution's inputs
are of each group's own."""

_NUMBERS = ("num_features", "num_channels", "num_parameters")  # what modules call the size of what they hold


@dataclass(frozen=True)
class Sizes:
    """New widths of a model.

    Attributes:
        widths: [in, out] of every convolution and linear layer that changes, [channels, None] of every normalisation;
            None where a side stays.
        parameters: [dimension, size] of whatever else is indexed by channels, by its full name: a LayerScale's gamma,
            a PReLU's slopes, a position embedding.
        maps: of a convolution between several maps: [channels of each that goes in, channels of each that comes out].
    """

    widths: Widths = field(default_factory=dict)
    parameters: dict[str, list[int]] = field(default_factory=dict)
    maps: dict[str, list[list[int]]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        optional = {"parameters": self.parameters, "maps": self.maps}
        return {"widths": self.widths} | {key: entries for key, entries in optional.items() if entries}

    @classmethod
    def from_json(cls, value: Any) -> "Sizes":
        """Read a form, of which all but ``widths`` may be absent. Raises ValueError on anything else."""
        if not isinstance(value, dict) or not {"widths"} <= set(value) <= {"widths", "parameters", "maps"}:
            raise ValueError(f"widths, and parameters and maps if need be, are needed; found {value!r:.200}")
        sizes = cls(value["widths"], value.get("parameters", {}), value.get("maps", {}))
        for key, entries in (("widths", sizes.widths), ("parameters", sizes.parameters), ("maps", sizes.maps)):
            if not isinstance(entries, dict):
                raise ValueError(f"{key}={entries!r:.80}: an object is needed")
            for name, entry in entries.items():
                _check_entry(key, name, entry)
        return sizes

    def __bool__(self) -> bool:
        return bool(self.widths or self.parameters or self.maps)


def _check_entry(key: str, name: Any, entry: Any) -> None:
    pair = isinstance(name, str) and isinstance(entry, list | tuple) and len(entry) == 2
    if key == "widths":
        fits = pair and any(n is not None for n in entry) and all(n is None or is_whole(n, 1) for n in entry)
        needed = "[in, out], whole numbers >= 1 or null for a side that stays,"
    elif key == "maps":
        fits = pair and all(isinstance(n, list | tuple) and n and all(is_whole(c, 1) for c in n) for n in entry)
        needed = "[[in, …], [out, …]], whole numbers >= 1,"
    else:
        fits, needed = pair and is_whole(entry[0], 0) and is_whole(entry[1], 1), "[dimension, size], whole numbers,"
    if not fits:
        raise ValueError(f"{key}[{name!r:.80}]={entry!r:.80}: {needed} are needed")


def sizes(model: nn.Module, keep: Keep) -> Sizes:
    """The smallest form that says how large a model is after ``keep``.

    Raises:
        SurgeryError: the model has no such tensor, or its kind of module has no form for such a slice.
    """
    form = Sizes()
    for (name, parameter), dims in keep.items():
        module = _submodule(model, name)
        tensor = _tensor(module, name, parameter)
        changed = {dim: _count(index) for dim, index in dims.items() if _count(index) < tensor.shape[dim]}
        if not changed:
            continue
        if isinstance(module, nn.Conv2d | nn.Linear):
            _note_layer(form, name, module, parameter, changed)
        elif (maps := _weight_maps(module)) is not None:
            if parameter == "weight":
                form.maps[name] = _maps_left(maps, dims)
        elif _norm_width(module) is not None and set(changed) == {0}:
            form.widths[name] = [changed[0], None]
        elif len(changed) == 1:
            form.parameters[f"{name}.{parameter}".strip(".")] = [*next(iter(changed.items()))]
        else:
            raise SurgeryError(f"{name}.{parameter} would be sliced along {len(changed)} dimensions; one can be")
    return form


def _count(index: Any) -> int:
    return int(np.shape(index)[-1])


def _note_layer(form: Sizes, name: str, module: nn.Conv2d | nn.Linear, parameter: str, changed: dict[int, int]) -> None:
    """The [in, out] of a layer from one of its parameters: all of them have the outputs, its weight the inputs too."""
    into, out = form.widths.get(name, [None, None])
    out = changed.get(0, out)
    if parameter == "weight" and 1 in changed:
        into = changed[1] * (module.groups if isinstance(module, nn.Conv2d) else 1)
    if is_depthwise(module) and out is not None:
        assert isinstance(module, nn.Conv2d)
        into = out // (module.out_channels // module.in_channels)
    form.widths[name] = [into, out]


def _weight_maps(module: nn.Module) -> WeightMaps | None:
    return module.weight_maps() if isinstance(module, SurgeryLayer) else None


def _maps_left(maps: WeightMaps, dims: Mapping[int, Any]) -> list[list[int]]:
    """How many channels stay of each map in and out."""
    sides = []
    for dim, channels in ((0 if maps.per_channel else 1, maps.in_channels), (0, maps.out_channels)):
        ends = np.cumsum(channels)
        kept = np.searchsorted(ends, np.asarray(dims[dim]), side="right") if dim in dims else None
        sides.append(list(channels) if kept is None else np.bincount(kept, minlength=len(channels)).tolist())
    return sides


def is_depthwise(module: nn.Module) -> bool:
    """Whether each output of a convolution reads one input."""
    return isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1


def keep_of_sides(model: nn.Module, kept: Mapping[str, tuple[list[int] | None, list[int] | None]]) -> Keep:
    """The indices (in, out) that modules keep, by module, as indices of their tensors.

    Inputs of a grouped convolution are numbered over all its groups, and as many of each group stay; normalisations
    have the first of the two only.
    """
    keep: dict[tuple[str, str], dict[int, Any]] = {}
    for name, (into, out) in kept.items():
        module = _submodule(model, name)
        width = _norm_width(module)
        if width is not None:
            tensors = [*module._parameters.items(), *module._buffers.items()]
            keep |= {(name, key): {0: into} for key, t in tensors if t is not None and t.shape == (width,)}
            continue
        dims: dict[int, Any] = {} if out is None else {0: out}
        if into is not None and not is_depthwise(module):
            dims[1] = into
            if isinstance(module, nn.Conv2d) and module.groups > 1:
                dims[1] = np.reshape(into, (module.groups, -1)) % (module.in_channels // module.groups)
        keep[name, "weight"] = dims
    return keep


def slice_channels(model: nn.Module, form: Sizes, keep: Keep | None = None) -> None:
    """Slice a model in place to new widths, and set its modules' own numbers (``in_channels``, ``groups``, …).

    Dtypes, devices, memory formats and ``requires_grad`` stay. Tensors that two modules share are sliced once, where
    the form says the same of both. Nothing is changed where an error is raised.

    Args:
        keep: which indices stay; without it the first ones do (the tensors are then to be loaded).

    Raises:
        SurgeryError: the form does not fit the model: a module or parameter is missing or of another kind, a width is
            larger than there is or does not divide into the groups, or ``keep`` says another thing.
    """
    slices = [entry for name, widths in form.widths.items() for entry in _width_slices(model, name, widths)]
    slices += [entry for name, maps in form.maps.items() for entry in _maps_slices(model, name, maps)]
    slices += [_parameter_slice(model, name, *entry) for name, entry in form.parameters.items()]
    if keep is not None:
        _check_keep(model, slices, keep)
    _check_tied(model, slices)
    sliced: dict[int, Tensor] = {}
    for entry in slices:
        tensor = entry.tensor
        if tensor is not None and id(tensor) not in sliced:
            sliced[id(tensor)] = _taken(tensor, entry.indices(keep))
    for entry in slices:
        entry.set(sliced)


@dataclass(frozen=True)
class _Slice:
    """A tensor to be sliced to new sizes by dimension, or (without one) the numbers of a module to be set."""

    name: str
    module: nn.Module
    parameter: str = ""
    dims: Mapping[int, int] = field(default_factory=dict)
    tensor: Tensor | None = None
    numbers: Mapping[str, Any] = field(default_factory=dict)

    def indices(self, keep: Keep | None) -> dict[int, Tensor]:
        kept = {} if keep is None else keep.get((self.name, self.parameter), {})
        if keep is not None and not kept and isinstance(self.module, nn.Conv2d | nn.Linear):
            kept = {0: keep[self.name, "weight"][0]}
        return {dim: torch.as_tensor(kept[dim]) if kept else torch.arange(size) for dim, size in self.dims.items()}

    def set(self, sliced: Mapping[int, Tensor]) -> None:
        if self.tensor is not None:
            setattr(self.module, self.parameter, sliced[id(self.tensor)])
        for name, value in self.numbers.items():
            setattr(self.module, name, value)


def _width_slices(model: nn.Module, name: str, widths: list[int | None]) -> Iterator[_Slice]:
    module = _submodule(model, name)
    if isinstance(module, nn.Conv2d):
        yield from _conv_slices(module, name, *widths)
    elif isinstance(module, nn.Linear):
        _check_width(name, module, "inputs", widths[0], module.in_features)
        _check_width(name, module, "outputs", widths[1], module.out_features)
        yield from _layer_slices(module, name, widths[0], widths[1])
        numbers = {"in_features": widths[0], "out_features": widths[1]}
        yield _Slice(name, module, numbers={key: size for key, size in numbers.items() if size is not None})
    elif (width := _norm_width(module)) is not None:
        size = widths[0]
        if size is None or widths[1] is not None:
            raise SurgeryError(f"{name!r}: a {type(module).__name__} has one width, [channels, None]; found {widths}")
        _check_width(name, module, "channels", size, width, getattr(module, "num_groups", 1))
        yield from _norm_slices(module, name, size, width)
    else:
        raise SurgeryError(f"{name!r}: a {type(module).__name__} has no widths that could be narrowed")


def _conv_slices(conv: nn.Conv2d, name: str, into: int | None, out: int | None) -> Iterator[_Slice]:
    depthwise = is_depthwise(conv) and into is not None
    groups = into if depthwise and into is not None else conv.groups
    _check_width(name, conv, "inputs", into, conv.in_channels, groups)
    _check_width(name, conv, "outputs", out, conv.out_channels, groups)
    if depthwise and out is None and into != conv.in_channels:
        raise SurgeryError(f"{name!r} is depth-wise: its outputs go with its inputs, and the widths are {[into, out]}")
    yield from _layer_slices(conv, name, None if depthwise or into is None else into // groups, out)
    numbers = {"in_channels": into, "out_channels": out, "groups": groups}
    yield _Slice(name, conv, numbers={key: size for key, size in numbers.items() if size is not None})


def _maps_slices(model: nn.Module, name: str, sides: list[list[int]]) -> Iterator[_Slice]:
    layer = _submodule(model, name)
    maps = _weight_maps(layer)
    if maps is None or not isinstance(layer, SurgeryLayer):
        raise SurgeryError(f"{name!r}: a {type(layer).__name__} has no maps whose channels could be removed")
    for what, channels, full in zip(("in", "out"), sides, (maps.in_channels, maps.out_channels), strict=True):
        if len(channels) != len(full) or not all(1 <= n <= size for n, size in zip(channels, full, strict=True)):
            raise SurgeryError(f"{name!r}: maps {what} of {list(full)} channels cannot be narrowed to {list(channels)}")
    into, out = map(sum, sides)
    for parameter, tensor in [*layer._parameters.items(), *layer._buffers.items()]:
        if tensor is not None and tensor.ndim:
            both = parameter == "weight" and not maps.per_channel
            sizes_left = {0: out, 1: into} if both else {0: out}
            dims = {dim: size for dim, size in sizes_left.items() if size < tensor.shape[dim]}
            if dims:
                yield _Slice(name, layer, parameter, dims, tensor)
    left = WeightMaps(tuple(sides[0]), tuple(sides[1]), maps.per_channel)
    yield _Slice(name, layer, numbers=layer.narrowed(left))


def _layer_slices(
    module: nn.Conv2d | nn.Linear, name: str, read_by_each: int | None, out: int | None
) -> Iterator[_Slice]:
    """Slices of a layer's own parameters: ``read_by_each`` inputs of each output, ``out`` outputs."""
    full = module.out_channels if isinstance(module, nn.Conv2d) else module.out_features
    if "weight" not in module._parameters:
        raise SurgeryError(f"{name!r}: the weight of this {type(module).__name__} is computed from others")
    for parameter, tensor in module._parameters.items():
        if tensor is None:
            continue
        dims = {0: out} if out is not None and tensor.shape[:1] == (full,) else {}
        if parameter == "weight" and read_by_each is not None:
            dims[1] = read_by_each
        if dims:
            yield _Slice(name, module, parameter, dims, tensor)


def _norm_width(module: nn.Module) -> int | None:
    """How many channels a normalisation of a usual kind has; None of anything else."""
    if isinstance(module, torchvision.ops.misc.FrozenBatchNorm2d):
        return module.weight.numel()
    if not isinstance(module, NORMS):
        return None
    shape = getattr(module, "normalized_shape", None)
    if shape is not None:
        return shape[0] if len(shape) == 1 else None
    width: int | None = getattr(module, "num_features", getattr(module, "num_channels", None))
    return width


def _norm_slices(norm: nn.Module, name: str, size: int, width: int) -> Iterator[_Slice]:
    for parameter, tensor in [*norm._parameters.items(), *norm._buffers.items()]:
        if tensor is not None and tensor.shape == (width,):
            yield _Slice(name, norm, parameter, {0: size}, tensor)
    numbers: dict[str, Any] = {key: size for key in ("num_features", "num_channels") if hasattr(norm, key)}
    if hasattr(norm, "normalized_shape"):
        numbers["normalized_shape"] = (size,)
    yield _Slice(name, norm, numbers=numbers)


def _parameter_slice(model: nn.Module, full_name: str, dim: int, size: int) -> _Slice:
    name, _, parameter = full_name.rpartition(".")
    module = _submodule(model, name)
    tensor = _tensor(module, name, parameter)
    if dim >= tensor.dim() or size > tensor.shape[dim]:
        shape = tuple(tensor.shape)
        raise SurgeryError(f"{full_name!r} is of shape {shape}: dimension {dim} cannot be sliced to {size}")
    old = tensor.shape[dim]
    numbers = {key: size for key in _NUMBERS if type(getattr(module, key, None)) is int and getattr(module, key) == old}
    return _Slice(name, module, parameter, {dim: size}, tensor, numbers)


def _check_width(name: str, module: nn.Module, what: str, size: int | None, full: int, groups: int = 1) -> None:
    if size is None:
        return
    if not 1 <= size <= full:
        raise SurgeryError(f"{name!r}: a {type(module).__name__} with {full} {what} cannot be narrowed to {size}")
    if size % groups:
        raise SurgeryError(f"{name!r}: {size} {what} cannot be divided into {groups} groups")


def _check_keep(model: nn.Module, slices: list[_Slice], keep: Keep) -> None:
    """Raise SurgeryError unless ``keep`` names what the form slices, with indices that are there, as many as it says.

    Parameters of a layer other than its weight may be left out: they keep the weight's outputs.
    """
    missing = {(e.name, e.parameter) for e in slices if e.tensor is not None and e.parameter != "bias"} - set(keep)
    missing = {(name, p) for name, p in missing if (name, "weight") not in keep}
    if missing:
        raise SurgeryError(f"which channels of {'.'.join(sorted(missing)[0]).strip('.')} stay is not said")
    named = {(entry.name, entry.parameter): entry for entry in slices if entry.tensor is not None}
    for key, dims in keep.items():
        tensor = named[key].tensor if key in named else _tensor(_submodule(model, key[0]), *key)
        assert tensor is not None
        for dim, index in dims.items():
            size = named[key].dims.get(dim) if key in named else None
            wanted = tensor.shape[dim] if size is None else size
            values = np.asarray(index)
            if values.shape[-1:] != (wanted,):
                raise SurgeryError(f"{'.'.join(key)}: {values.shape} indices along dimension {dim} for {wanted} places")
            if values.size and not 0 <= values.min() <= values.max() < tensor.shape[dim]:
                raise SurgeryError(f"{'.'.join(key)}: an index along dimension {dim} is not below {tensor.shape[dim]}")


def _check_tied(model: nn.Module, slices: list[_Slice]) -> None:
    """Raise SurgeryError where a sliced tensor is used elsewhere too, and is not sliced there in the same way."""
    sliced: dict[int, list[_Slice]] = {}
    for entry in slices:
        if entry.tensor is not None:
            sliced.setdefault(id(entry.tensor), []).append(entry)
    names: dict[int, list[str]] = {}
    for kind in (model.named_parameters, model.named_buffers):
        for name, tensor in kind(remove_duplicate=False):
            if id(tensor) in sliced:
                names.setdefault(id(tensor), []).append(name)
    for number, owners in names.items():
        entries = sliced[number]
        if len(owners) != len(entries) or any(entry.dims != entries[0].dims for entry in entries):
            raise SurgeryError(f"{' and '.join(owners)} are one tensor, and the new widths do not say the same of all")


def _taken(tensor: Tensor, indices: Mapping[int, Tensor]) -> Tensor:
    """The slices of a tensor, in its memory format."""
    kept = tensor.detach()
    for dim, index in sorted(indices.items(), reverse=True):
        chosen = index.to(kept.device)
        kept = kept.index_select(dim, chosen) if chosen.dim() == 1 else _taken_by_group(kept, chosen)
    channels_last = tensor.dim() == 4 and not tensor.is_contiguous()
    if channels_last and tensor.is_contiguous(memory_format=torch.channels_last):
        kept = kept.contiguous(memory_format=torch.channels_last)
    kept = kept.clone() if kept.data_ptr() == tensor.data_ptr() and not kept.is_meta else kept
    return nn.Parameter(kept, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else kept


def _taken_by_group(weight: Tensor, index: Tensor) -> Tensor:
    """Inputs (groups, n) of a grouped convolution's weight, other ones of each group."""
    blocks = weight.unflatten(0, (len(index), -1))
    return torch.stack([block.index_select(1, chosen) for block, chosen in zip(blocks, index, strict=True)]).flatten(
        0, 1
    )


def _submodule(model: nn.Module, name: str) -> nn.Module:
    try:
        return model.get_submodule(name)
    except AttributeError:
        raise SurgeryError(
            f"{type(model).__name__} has no module {name!r}: not the model these widths are for"
        ) from None


def _tensor(module: nn.Module, name: str, parameter: str) -> Tensor:
    tensor = {**module._parameters, **module._buffers}.get(parameter)
    if tensor is None:
        full_name = f"{name}.{parameter}".strip(".")
        raise SurgeryError(f"there is no parameter or buffer {full_name!r}: not the model these widths are for")
    return tensor
