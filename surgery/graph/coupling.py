"""Which channels of a network live and die together, channel by channel, whatever axis they are on.

Every element of every recorded tensor carries the number of a channel; what an operation does to numbers is found by
carrying it out on them. So reshapes, permutations, splits, shuffles and concatenations need no rules of their own: a
tensor (N, tokens, heads · width), split into heads and put together again, still knows where each column came from.
Sums and gates couple the channels of their operands; convolutions and linear layers end some and begin others. What is
not understood freezes the channels that it touches, with the reason.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from timm import layers as timm_layers
from timm.layers.adaptive_avgmax_pool import FastAdaptiveAvgPool, FastAdaptiveMaxPool
from torch import Tensor, fx, nn

from surgery.core.surgery_layer import SurgeryLayer
from surgery.graph.channel_classes import Coupling, Layer, ScaledLayer, Side, connected
from surgery.graph.dataflow import conv_spec
from surgery.graph.recorder import ModelGraph

CHANNELS_FIRST = tuple(  # which of them there are depends on timm's version
    getattr(timm_layers, name)
    for name in (
        *("LayerNorm2d", "LayerNorm2dFp32", "LayerNormExp2d", "LayerNormAct2d", "LayerNormAct2dFp32"),
        *("RmsNorm2d", "RmsNorm2dFp32", "SimpleNorm2d", "SimpleNorm2dFp32"),
    )
    if hasattr(timm_layers, name)
)
NOT_A_CHANNEL = 0  # the number of batch, image and whatever was never followed: frozen
MOST_ELEMENTS = 1 << 24  # of a tensor whose numbers are moved one by one

_MOVES = frozenset(
    name
    for names in (
        "view reshape flatten permute transpose swapaxes swapdims movedim unsqueeze squeeze expand expand_as unflatten",
        "cat concat concatenate stack split chunk tensor_split unbind split_with_sizes narrow select getitem roll flip",
        "contiguous clone get to float half type_as detach repeat unfold pixel_shuffle pixel_unshuffle channel_shuffle",
        "native_channel_shuffle view_as reshape_as",
    )
    for name in names.split()
)
_REDUCTIONS = frozenset(["mean", "sum", "amax", "amin", "max", "min", "std", "var"])
_SPATIAL = frozenset({"pool", "global_pool", "pad", "upsample"})
_ELEMENTWISE = frozenset({"act", "identity", "add", "mul"})


def couple(graph: ModelGraph) -> Coupling:
    """Follow every channel through a recorded graph."""
    walker = _Walker(graph)
    for node in graph:
        if node.op == "output":
            for source in node.all_input_nodes:
                walker.freeze(walker.numbers.get(source), "it is the model's output")
        else:
            walker.visit(node)
    return walker.result()


class _Walker:
    def __init__(self, graph: ModelGraph) -> None:
        self.graph = graph
        self.numbers: dict[fx.Node, Tensor] = {}  # of the node's rank; size 1 where they do not vary
        self.count = 1
        self.edges: list[tuple[np.ndarray, np.ndarray]] = []
        self.reasons: list[tuple[np.ndarray, str]] = [(np.array([NOT_A_CHANNEL]), "not a channel")]
        self.raw_layers: list[tuple[str, Tensor, Tensor, int, int]] = []
        self.scaled_layers: list[tuple[str, list[tuple[Tensor, Tensor, int]]]] = []  # of those, their links
        self.maps: dict[fx.Node, list[Tensor]] = {}  # what such a layer gives
        self.raw_sides: list[tuple[str, str, int, Tensor]] = []
        self.parameters: dict[str, Tensor] = {}
        self.tied = _tied_tensors(graph.modules)

    # what is known of a node

    def fresh(self, *shape: int) -> Tensor:
        """New channels."""
        size = math.prod(shape)
        self.count += size
        return torch.arange(self.count - size, self.count).reshape(shape)

    def full(self, node: fx.Node) -> Tensor:
        """The number of every element of a node's tensor."""
        shape = node.meta["shape"]
        numbers = self.numbers.get(node)
        if numbers is None:
            return torch.full((1,) * len(shape), NOT_A_CHANNEL).expand(shape)
        return numbers.expand(shape)

    def axis(self, node: fx.Node) -> int | None:
        """The only dimension along which a node's channels lie, or None."""
        numbers = self.numbers.get(node)
        varying = [] if numbers is None else [dim for dim, size in enumerate(numbers.shape) if size > 1]
        return varying[0] if len(varying) == 1 else None

    def freeze(self, numbers: Tensor | None, reason: str) -> None:
        if numbers is not None:
            self.reasons.append((numbers.flatten().numpy(), reason))

    def tie(self, one: Tensor, two: Tensor) -> None:
        """Channels of the two (of one shape) are the same from now on."""
        a, b = one.flatten().numpy(), two.flatten().numpy()
        different = a != b
        if different.any():
            self.edges.append((a[different], b[different]))

    def tie_blocks(self, numbers: Tensor, groups: int) -> None:
        """As many channels must go from each block of a grouped operation: those in the same place go together."""
        blocks = numbers.reshape(groups, -1)
        self.tie(blocks[1:], blocks[:1].expand_as(blocks[1:]))

    # one operation

    def visit(self, node: fx.Node) -> None:
        kind, shape = node.meta.get("kind"), node.meta.get("shape")
        if node.op == "placeholder":
            return
        if node.op == "get_attr":
            self.attribute(node)
            return
        rule = self.rule(node, kind)
        try:
            numbers = rule(node) if rule is not None else None
        except (RuntimeError, TypeError, IndexError, ValueError):  # an operation that numbers cannot go through
            numbers = None
        if numbers is None:
            self.unknown(node)
        elif shape is not None:
            self.numbers[node] = _compact(numbers, shape)

    def rule(self, node: fx.Node, kind: str | None) -> Callable[[fx.Node], Tensor | None] | None:
        name, shape = _name(node), node.meta.get("shape")
        if node.op == "call_module":
            rules = {"conv": self.convolution, "linear": self.linear, "norm": self.norm, "act": self.same}
            rules["scale"] = self.same
            if isinstance(self.graph.modules[node.meta["module"]], timm_layers.LayerScale):
                return self.scaled_tokens
            if isinstance(self.graph.modules[node.meta["module"]], (FastAdaptiveAvgPool, FastAdaptiveMaxPool)):
                return self.fast_pooling
            rules["surgery"] = self.scaled
            if kind == "identity" and shape is None:
                return self.passed_on
            rules |= {"identity": self.same, "reshape": self.flattening} | dict.fromkeys(_SPATIAL, self.spatial)
            return rules.get(kind or "")
        if name in _MOVES:
            return self.moved
        if name in _REDUCTIONS and kind == "global_pool":
            return self.reduced
        if kind in _ELEMENTWISE:
            return self.elementwise
        return self.spatial if kind in _SPATIAL else None

    def unknown(self, node: fx.Node) -> None:
        name = node.meta.get("module") or _name(node)
        for source in node.all_input_nodes:
            for read in source.all_input_nodes if source.meta.get("shape") is None else [source]:
                self.freeze(self.numbers.get(read), f"{name} reads it in a way that is not followed")

    def attribute(self, node: fx.Node) -> None:
        """A parameter or buffer that a forward uses itself: every element is a channel until something ties it."""
        shape = node.meta["shape"]
        if node.meta["kind"] != "attribute":  # of unknown origin: it may depend on all that came before
            for _, _, writes, _, _ in self.raw_layers:
                self.freeze(writes, "a tensor of unknown origin may depend on it")
            return
        if shape and math.prod(shape) <= MOST_ELEMENTS:
            name = str(node.target)
            if not self.is_stored(name):
                return
            if name not in self.parameters:
                self.parameters[name] = self.fresh(*shape)
            self.numbers[node] = self.parameters[name]

    def convolution(self, node: fx.Node) -> Tensor | None:
        name, source = node.meta.get("module"), node.all_input_nodes[0]
        spec = conv_spec(self.graph, node)
        reads = self.along(source, 1, spec.in_channels)
        if name is None or reads is None or not self.usable(name):
            return None
        module = self.graph.modules[name]
        if spec.groups == spec.in_channels > 1 and spec.out_channels % spec.in_channels == 0:
            writes = reads.repeat_interleave(spec.out_channels // spec.in_channels)
        else:
            writes = self.fresh(spec.out_channels)
            if spec.groups > 1:
                self.tie_blocks(reads, spec.groups)
                self.tie_blocks(writes, spec.groups)
            self.side(name, "weight", 1, reads if spec.groups == 1 else reads.reshape(spec.groups, -1)[0])
        for parameter, tensor in module.named_parameters(recurse=False):
            if tensor.shape[:1] == (spec.out_channels,):
                self.side(name, parameter, 0, writes)
        macs = math.prod(node.meta["shape"]) * math.prod(spec.kernel) * spec.in_channels // spec.groups
        self.raw_layers.append((name, reads, writes, macs, spec.groups))
        return writes.reshape(1, -1, 1, 1)

    def linear(self, node: fx.Node) -> Tensor | None:
        name, source = node.meta.get("module"), node.all_input_nodes[0]
        shape = node.meta["shape"]
        reads = self.along(source, len(shape) - 1, source.meta["shape"][-1])
        if name is None or reads is None or not self.usable(name):
            return None
        writes = self.fresh(shape[-1])
        self.side(name, "weight", 1, reads)
        for parameter, _ in self.graph.modules[name].named_parameters(recurse=False):
            self.side(name, parameter, 0, writes)
        self.raw_layers.append((name, reads, writes, math.prod(shape) * len(reads), 1))
        return writes.reshape([1] * (len(shape) - 1) + [-1])

    def scaled(self, node: fx.Node) -> Tensor | None:
        """A method's layer whose tensors span the channels of several maps: a convolution between them, or a norm."""
        name = node.meta["module"]
        layer = self.graph.modules[name]
        maps = layer.weight_maps() if isinstance(layer, SurgeryLayer) else None
        sources = node.all_input_nodes
        if maps is None or len(sources) != len(maps.in_channels) or not self.usable(name):
            return None
        along = [self.along(source, 1, size) for source, size in zip(sources, maps.in_channels, strict=True)]
        reads = [numbers for numbers in along if numbers is not None]
        if len(reads) < len(along):
            return None
        writes = reads if maps.per_channel else [self.fresh(size) for size in maps.out_channels]
        for tensor, value in [*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)]:
            if value.ndim:
                self.side(name, tensor, 0, torch.cat(writes))
        if not maps.per_channel:
            self.scaled_links(node, name, reads, writes)
        outputs = [numbers.reshape(1, -1, 1, 1) for numbers in writes]
        if isinstance(node.meta["shapes"], tuple):
            return outputs[0]
        self.maps[node] = outputs
        return torch.empty(0, dtype=torch.long)

    def passed_on(self, node: fx.Node) -> Tensor | None:
        """Several maps, as they came."""
        numbers = [self.numbers.get(source) for source in node.all_input_nodes]
        if any(n is None for n in numbers) or len(numbers) != len(node.meta["shapes"]):
            return None
        self.maps[node] = [n for n in numbers if n is not None]
        return torch.empty(0, dtype=torch.long)

    def scaled_links(self, node: fx.Node, name: str, reads: list[Tensor], writes: list[Tensor]) -> None:
        """Write a convolution between maps down, as a whole and link by link."""
        layer = self.graph.modules[name]
        assert isinstance(layer, SurgeryLayer)
        macs = layer.link_macs(node.meta["input_shapes"], node.meta["shapes"])
        self.side(name, "weight", 1, torch.cat(reads))
        self.scaled_layers.append((name, [(reads[i], writes[j], count) for (i, j), count in macs.items()]))
        self.raw_layers.append((name, torch.cat(reads), torch.cat(writes), sum(macs.values()), 1))

    def norm(self, node: fx.Node) -> Tensor | None:
        """Whatever normalises: its per-channel parameters go with the channels that it reads."""
        name, source = node.meta["module"], node.all_input_nodes[0]
        module, shape = self.graph.modules[name], source.meta["shape"]
        dim = _norm_dim(module, len(shape))
        if source not in self.numbers or not self.graph.called_once(name):
            return None
        numbers = self.along(source, dim, shape[dim])
        assert numbers is not None
        if getattr(module, "normalized_shape", None) and not any(True for _ in module.parameters()):
            self.freeze(numbers, f"{name} normalises it and has no parameters of a size")
        groups = getattr(module, "num_groups", getattr(module, "groups", 1))  # of a GroupNorm or an EvoNorm
        if isinstance(groups, int) and groups > 1:
            self.tie_blocks(numbers, groups)
        if not self.per_channel(name, numbers):
            return None
        return numbers.reshape([-1 if axis == dim else 1 for axis in range(len(shape))])

    def same(self, node: fx.Node) -> Tensor | None:
        name, source = node.meta["module"], node.all_input_nodes[0]
        module, numbers = self.graph.modules[name], self.numbers.get(source)
        if numbers is None or source.meta["shape"] != node.meta["shape"]:
            return None
        held = any(tensor.numel() > 1 for tensor in (*module.parameters(), *module.buffers()))
        if held and (self.axis(source) is None or not self.graph.called_once(name)):
            return None
        return numbers if not held or self.per_channel(name, numbers.flatten()) else None

    def scaled_tokens(self, node: fx.Node) -> Tensor | None:
        """A LayerScale of tokens (N, tokens, channels), or of a map with its channels last."""
        source = node.all_input_nodes[0]
        return self.same(node) if self.axis(source) == len(source.meta["shape"]) - 1 else None

    def per_channel(self, name: str, numbers: Tensor) -> bool:
        """Whether all that a module holds is one number, or one for each channel; these go with the channels."""
        module = self.graph.modules[name]
        held = [(key, t) for key, t in [*module.named_parameters(), *module.named_buffers()] if t.numel() > 1]
        if any(t.numel() != len(numbers) or max(t.shape) != len(numbers) for _, t in held):
            return False
        if any(not self.is_stored(f"{name}.{key}".strip(".")) for key, _ in held):
            return False
        for key, tensor in held:
            owner, _, parameter = f"{name}.{key}".rpartition(".")
            self.side(owner, parameter, tensor.shape.index(len(numbers)), numbers)
        return True

    def spatial(self, node: fx.Node) -> Tensor | None:
        """Poolings and the like change some dimensions and leave that of the channels alone."""
        source, shape = node.all_input_nodes[0], node.meta["shape"]
        numbers, before = self.numbers.get(source), source.meta["shape"]
        name = node.meta.get("module")
        if numbers is None or len(shape) != len(before):
            return None
        if name and any(True for _ in self.graph.modules[name].parameters()):
            return None
        kept = all(size == 1 or shape[dim] == before[dim] for dim, size in enumerate(numbers.shape))
        return numbers if kept else None

    def flattening(self, node: fx.Node) -> Tensor:
        return self.graph.modules[node.meta["module"]](self.full(node.all_input_nodes[0]))

    def moved(self, node: fx.Node) -> Tensor | None:
        """An operation that moves elements, carried out on their numbers."""
        if any(math.prod(source.meta["shape"] or (1,)) > MOST_ELEMENTS for source in node.all_input_nodes):
            return None
        if node.meta["shape"] is None or any(source.meta["shape"] is None for source in node.all_input_nodes):
            return self.part(node)
        name = _name(node)
        if name in ("view", "reshape", "unflatten"):
            self.tie_parts(node)
        elif name == "getitem" and _slices_channels(self.numbers.get(node.all_input_nodes[0]), node.args[1]):
            return None
        arguments = fx.map_arg((node.args, node.kwargs), self.full)
        if name in ("to", "float", "half", "type_as", "detach", "contiguous", "clone"):
            return self.full(node.all_input_nodes[0])
        return node.target(*arguments[0], **arguments[1])  # type: ignore[operator]

    def part(self, node: fx.Node) -> Tensor | None:
        """One of the tensors that an operation gave, or the operation itself, whose parts are asked for later."""
        source = node.all_input_nodes[0]
        if node.meta["shape"] is None:
            return torch.empty(0, dtype=torch.long)
        if source in self.maps:
            return self.maps[source][node.args[1]]  # type: ignore[index]
        if _name(source) not in _MOVES or not self.even_split(source):
            return None
        arguments = fx.map_arg((source.args, source.kwargs), self.full)
        return source.target(*arguments[0], **arguments[1])[node.args[1]]  # type: ignore[operator]

    def even_split(self, node: fx.Node) -> bool:
        """Whether a split is into equal parts by their number, in which case they lose the same channels each."""
        source, numbers = node.all_input_nodes[0], None
        numbers = self.numbers.get(source)
        dim = node.kwargs.get("dim", node.args[2] if len(node.args) > 2 else 0)
        if _name(node) == "unbind":
            return True
        if numbers is None or numbers.shape[dim] == 1:  # type: ignore[index]
            return True
        count = node.args[1] if len(node.args) > 1 else node.kwargs.get("chunks")
        if _name(node) != "chunk" or numbers.shape[dim] % count:  # type: ignore[index,operator]
            return False
        blocks = numbers.movedim(dim, 0)  # type: ignore[arg-type]
        self.tie_blocks(blocks, count)  # type: ignore[arg-type]
        return True

    def tie_parts(self, node: fx.Node) -> None:
        """A dimension of channels that is cut into several, as heads or shuffled groups: all parts lose the same."""
        source, shape = node.all_input_nodes[0], list(node.meta["shape"])
        numbers, before = self.numbers.get(source), list(source.meta["shape"])
        for dim, size in enumerate(() if numbers is None else numbers.shape):
            if size == 1:
                continue
            start = math.prod(before[:dim])
            position, done = 0, 1
            while done < start and position < len(shape):
                done *= shape[position]
                position += 1
            parts = 1
            for length in shape[position:]:
                if parts * length >= size:
                    break
                parts *= length
            if done == start and 1 < parts < size and size % parts == 0:
                assert numbers is not None
                self.tie_blocks(numbers.movedim(dim, 0), parts)

    def reduced(self, node: fx.Node) -> Tensor | None:
        """A mean or sum: of channels along a reduced dimension there is one left, so they go together."""
        source = node.all_input_nodes[0]
        numbers = self.full(source)
        dims = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else None)
        keepdim = node.kwargs.get("keepdim", node.args[2] if len(node.args) > 2 else False)
        return None if dims is None else self._one_of(numbers, dims, bool(keepdim))  # type: ignore[arg-type]

    def fast_pooling(self, node: fx.Node) -> Tensor | None:
        """timm's pooling of a map in any layout: a reduction along its spatial dimensions."""
        module = self.graph.modules[node.meta["module"]]
        numbers = self.full(node.all_input_nodes[0])
        return self._one_of(numbers, module.dim, not module.flatten)  # type: ignore[arg-type]

    def _one_of(self, numbers: Tensor, dims: int | tuple[int, ...], keepdim: bool) -> Tensor:
        first = torch.amax(numbers, dims, keepdim=True)
        self.tie(numbers, first.expand_as(numbers))
        return first if keepdim else torch.amax(numbers, dims)

    def elementwise(self, node: fx.Node) -> Tensor | None:
        """Sums, gates and activations: channels of operands that lie on each other go together."""
        shape = node.meta["shape"]
        result: Tensor | None = None
        for source in node.all_input_nodes:
            own = source.meta["shape"]
            if own is None:
                return None
            if math.prod(own) == 1 < math.prod(shape):
                continue
            operand = self.full(source).reshape((1,) * (len(shape) - len(own)) + tuple(own))
            result = operand if result is None else self.joined(result, operand)
        return None if result is None else _compact(result, result.shape).expand(result.shape)

    def joined(self, one: Tensor, two: Tensor) -> Tensor:
        """Tie two operands, unless one is broadcast along the other's channels: then that one's are frozen."""
        compact = [_compact(numbers, numbers.shape) for numbers in (one, two)]
        for numbers, other, own in ((one, two, compact[0]), (two, one, compact[1])):
            across = [
                dim for dim, size in enumerate(compact[numbers is one].shape) if size > 1 and numbers.shape[dim] == 1
            ]
            if across:
                if own.numel() > 1 or int(own.flatten()[0]) != NOT_A_CHANNEL:
                    self.freeze(own, "it is one value for many channels")
                return other
        shape = torch.broadcast_shapes(one.shape, two.shape)
        tied = torch.broadcast_tensors(*compact)
        self.tie(*tied)
        return tied[0].expand(shape)

    # the parts of the result

    def along(self, node: fx.Node, dim: int, size: int) -> Tensor | None:
        """Channels of a node along one dimension; what lies elsewhere in the tensor is tied to them."""
        numbers = self.numbers.get(node)
        if numbers is None or numbers.numel() == 1 < size:
            return torch.full((size,), NOT_A_CHANNEL)
        first = numbers
        for other, varying in enumerate(numbers.shape):
            if varying > 1 and other != dim % numbers.dim():
                first = first.narrow(other, 0, 1)
        self.tie(first.expand_as(numbers), numbers)
        return first.flatten().expand(size)

    def usable(self, name: str) -> bool:
        """Whether a layer runs once, with a weight that is a parameter of its own."""
        module = self.graph.modules[name]
        tied = any(id(tensor) in self.tied for tensor in module._parameters.values())
        return self.graph.called_once(name) and "weight" in module._parameters and not tied

    def is_stored(self, name: str) -> bool:
        """Whether a tensor is one that a file holds: a parameter or persistent buffer, under one name."""
        owner, _, key = name.rpartition(".")
        module = self.graph.modules.get(owner)
        if module is None:
            return False
        tensor = {**module._parameters, **module._buffers}.get(key)
        return tensor is not None and id(tensor) not in self.tied and key not in module._non_persistent_buffers_set

    def side(self, module: str, parameter: str, dim: int, numbers: Tensor) -> None:
        self.raw_sides.append((module, parameter, dim, numbers))

    def result(self) -> Coupling:
        classes = connected(self.count, self.edges)
        frozen: dict[int, str] = {}
        for numbers, reason in self.reasons:
            for number in np.unique(classes[numbers]).tolist():
                frozen.setdefault(number, reason)
        layers = {
            name: Layer(name, classes[reads.numpy()], classes[writes.numpy()], macs, groups)
            for name, reads, writes, macs, groups in self.raw_layers
        }
        for name, links in self.scaled_layers:
            parts = [Layer(name, classes[r.numpy()], classes[w.numpy()], macs) for r, w, macs in links]
            layers[name] = ScaledLayer(
                name, layers[name].reads, layers[name].writes, layers[name].macs, 1, tuple(parts)
            )
        sides = [Side(m, p, dim, classes[numbers.numpy()]) for m, p, dim, numbers in self.raw_sides]
        coupling = Coupling(layers, sides, frozen)
        self.add_attributes(coupling, classes)
        return coupling

    def add_attributes(self, coupling: Coupling, classes: np.ndarray) -> None:
        """Sides of the parameters that forwards use themselves."""
        removable = coupling.removable()
        for name, numbers in self.parameters.items():
            own = classes[numbers.numpy()]
            if not np.isin(own, removable).any():
                continue
            compact = _compact(torch.from_numpy(own), own.shape)
            varying = [dim for dim, size in enumerate(compact.shape) if size > 1]
            if len(varying) != 1:
                coupling.frozen |= dict.fromkeys(np.unique(own).tolist(), f"{name} mixes it with others")
                continue
            module, _, parameter = name.rpartition(".")
            coupling.sides.append(Side(module, parameter, varying[0], compact.flatten().numpy()))


def _norm_dim(module: nn.Module, rank: int) -> int:
    """The dimension whose channels a normalisation has parameters for."""
    return rank - 1 if hasattr(module, "normalized_shape") and not isinstance(module, CHANNELS_FIRST) else 1


def _tied_tensors(modules: dict[str, nn.Module]) -> set[int]:
    """Parameters and buffers that several modules hold, by identity."""
    held = [
        t
        for m in {id(m): m for m in modules.values()}.values()
        for t in (*m._parameters.values(), *m._buffers.values())
    ]
    counts = Counter(id(tensor) for tensor in held if tensor is not None)
    return {number for number, count in counts.items() if count > 1}


def _name(node: fx.Node) -> str:
    return getattr(node.target, "__name__", str(node.target)).strip("_")


def _slices_channels(numbers: Tensor | None, index: Any) -> bool:
    """Whether an index cuts channels at a fixed place."""
    if numbers is None:
        return False
    items = index if isinstance(index, tuple) else (index,)
    if any(item is Ellipsis for item in items):
        return numbers.numel() > 1
    dim = 0
    for item in items:
        if item is None:
            continue
        size = numbers.shape[dim]
        whole = isinstance(item, slice) and item.indices(size) == (0, size, 1)
        if size > 1 and not whole:
            return True
        dim += 1
    return False


def _compact(numbers: Tensor, shape: Iterable[int]) -> Tensor:
    """The same numbers with size 1 wherever they do not vary."""
    numbers = numbers.expand(tuple(shape))
    for dim, size in enumerate(numbers.shape):
        if size > 1:
            first = numbers.narrow(dim, 0, 1)
            if numbers.stride(dim) == 0 or bool((numbers == first).all()):
                numbers = first
    return numbers.contiguous()
