"""Record one forward pass of a model as a torch.fx graph that knows shapes, modules and dataflow.

The pass runs on fake tensors (no memory, no arithmetic), so a 1-billion-parameter model costs what a small one does.
Compared with symbolic tracing it follows any Python control flow, sees inside blocks that tracers treat as leaves,
and needs no second pass for shapes; ``docs/design.md`` has the measurements. A forward that looks at values is
recorded on real zeros instead.
"""

import contextlib
import dataclasses
import logging
import operator
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.overrides import TorchFunctionMode

from surgery.core.errors import TraceError
from surgery.core.surgery_layer import SurgeryLayer
from surgery.graph.generators import generators_kept
from surgery.graph.input_size import InputSize, image_shapes
from surgery.graph.kinds import function_kind, module_kind
from surgery.graph.scripted import calls_seen, inside_scripted, script_function_kind
from surgery.graph.skeleton import CopyError, copy_with, meta_copy, tensors
from surgery.graph.trees import attributes, own_attributes, tensors_in
from surgery.graph.unsuitable import advice, check_use, unsuitable

FALLBACK_SIZES = (224, 32)
UNSEEN = "unseen"  # kind of a tensor that neither the model holds nor a recorded call gave


@dataclass(frozen=True)
class ModelGraph:
    """One recorded forward.

    Every node's ``meta`` holds ``kind`` (see ``graph.kinds``), ``shape`` (tuple, or None), ``owner`` (qualified name
    of the innermost module whose forward made the call), for a module call ``module``, and where it is the first
    argument of modules that are no leaves their names, ``enters``. Values are trees: a call that takes or gives lists,
    dicts or dataclasses of tensors has every tensor among its inputs, or an ``item`` node for it. ``needs_values``
    says that the forward looks at values, so that the model cannot be recorded on the meta device.
    """

    graph: fx.Graph
    modules: dict[str, nn.Module]
    input_shape: tuple[int, ...]
    calls: Counter[str] = field(default_factory=Counter)
    aliases: Counter[int] = field(default_factory=Counter)
    needs_values: bool = False

    def __iter__(self) -> Iterator[fx.Node]:
        return iter(self.graph.nodes)

    def called_once(self, name: str) -> bool:
        """Whether the module runs exactly once in a forward and is registered under one name only."""
        return self.calls[name] == 1 and self.aliases[id(self.modules[name])] == 1


def input_shape_of(model: nn.Module, input_size: InputSize | None = None) -> list[tuple[int, ...]]:
    """Shapes (C, H, W) worth trying as the model's input: the given one, its own configured one, common ones."""
    config = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None)
    own = tuple(config["input_size"]) if isinstance(config, dict) and config.get("input_size") else ()
    first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    # the first convolution knows of in_chans=1, where the configuration does not; behind a space-to-depth it is wrong
    channels = dict.fromkeys([*([first.in_channels] if first else []), *own[:1], 3])
    if input_size is not None:
        return [*image_shapes(input_size, list(channels))]
    sizes = [*([own[1:]] if own else []), *((size, size) for size in FALLBACK_SIZES)]
    shapes: list[tuple[int, ...]] = [(count, *size) for size in sizes for count in channels]
    return shapes


def record(model: nn.Module, input_size: InputSize | None = None) -> ModelGraph:
    """Record ``model``'s eval-mode forward on one image.

    The image is a batch (1, C, H, W) or, for a model that takes no batch, a list of one (C, H, W).

    Args:
        input_size: (C, H, W), (H, W) or one side; default: the model's configured size, else 224, else 32 pixels.

    Raises:
        TraceError: the forward fails on such an input; the message says why, and whether a size would help. Or the
            model cannot be copied; the message says what it holds that cannot.
    """
    shapes = input_shape_of(model, input_size)
    attempts = [(shape, False) for shape in shapes]
    attempts += [(shapes[0], True)] if not unsuitable(model) else []
    failures: list[tuple[tuple[int, ...], Exception]] = []
    for shape, listed in attempts:
        for run in (_record_fake, _record_real):
            try:
                with generators_kept():
                    return run(model, shape, listed)
            except Exception as error:  # any forward may raise anything; all of it is reported below
                failures.append((shape, error))
                if isinstance(error, CopyError):
                    meta_copy(model)  # no size would do: unless fake tensors alone are the reason, this raises it
    shape, first = failures[0]
    raise TraceError(
        f"the forward of {type(model).__name__} fails on an input of shape (1, {', '.join(map(str, shape))}): "
        f"{type(first).__name__}: {str(first).partition(chr(10))[0].rstrip('.')}. {advice(model, first)}"
    ) from first


def _record_fake(model: nn.Module, shape: tuple[int, ...], listed: bool) -> ModelGraph:
    with _quiet_fakes(), FakeTensorMode(allow_non_fake_inputs=True):
        skeleton = copy_with(model, lambda t: torch.empty_strided(t.shape, t.stride(), dtype=t.dtype))
        return _run(model, skeleton, torch.empty((1, *shape), dtype=_float_dtype(model)), listed)


@contextlib.contextmanager
def _quiet_fakes() -> Iterator[None]:
    """Fake tensors log an error besides raising it; the exception alone is what ``record`` reports."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    disabled, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = disabled


def _record_real(model: nn.Module, shape: tuple[int, ...], listed: bool) -> ModelGraph:
    if any(tensor.is_meta for tensor in tensors(model)):
        raise TraceError("the forward looks at values, and the model is on the meta device")
    skeleton = copy_with(model, lambda t: t.detach().cpu().clone())
    graph = _run(model, skeleton, torch.zeros((1, *shape), dtype=_float_dtype(model)), listed)
    return dataclasses.replace(graph, needs_values=True)


def _float_dtype(model: nn.Module) -> torch.dtype:
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.get_default_dtype())


def record_training(model: nn.Module, input_shape: tuple[int, ...]) -> ModelGraph:
    """Record the forward of training mode on two images (C, H, W), with whatever heads only training uses.

    Raises:
        TraceError: it fails.
    """
    try:
        with generators_kept(), _quiet_fakes(), FakeTensorMode(allow_non_fake_inputs=True):
            skeleton = copy_with(model, lambda t: torch.empty_strided(t.shape, t.stride(), dtype=t.dtype))
            images = torch.empty((2, *input_shape), dtype=_float_dtype(model))
            return _run(model, skeleton, images, listed=False, training=True)
    except Exception as error:  # any forward may raise anything
        raise TraceError(f"the forward of training mode fails: {type(error).__name__}: {error!s:.200}") from error


def _run(model: nn.Module, skeleton: nn.Module, images: Tensor, listed: bool, training: bool = False) -> ModelGraph:
    skeleton.train(training)
    with unset_fake_temporarily():
        kinds = {name: module_kind(module) for name, module in model.named_modules()}
    recorder = _Recorder(skeleton, kinds)
    image = images[0] if listed else images
    recorder.bind(image, recorder.graph.placeholder("input"), "input", image.shape)
    with torch.no_grad(), recorder, calls_seen(recorder.scripted_call):
        output = skeleton([image] if listed else image)
    recorder.graph.output(recorder.nodes_of(output))
    aliases = Counter(id(module) for _, module in model.named_modules(remove_duplicate=False))
    return ModelGraph(recorder.graph, dict(model.named_modules()), tuple(images.shape[1:]), recorder.calls, aliases)


def _is_leaf(name: str, module: nn.Module, kind: str) -> bool:
    if isinstance(module, SurgeryLayer | torch.jit.ScriptModule) or kind == "norm":
        return True
    return name != "" and (next(module.children(), None) is None or kind in ("act", "scale"))


class _Recorder(TorchFunctionMode):
    """Writes down every torch function and leaf-module call that takes or gives tensors, as fx nodes."""

    def __init__(self, model: nn.Module, kinds: dict[str, str]) -> None:
        super().__init__()
        self._kinds = kinds
        self.graph = fx.Graph()
        self.calls: Counter[str] = Counter()
        self._node: dict[int, fx.Node] = {}
        self._alive: list[Tensor] = []  # ids stay unique only while the tensors live
        self._owners: list[str] = [""]
        self._leaf_depth = 0
        self._held = _names_of_tensors(model)
        hidden = inside_scripted(model)
        for name, module in model.named_modules():
            if name not in hidden:
                self._watch(name, module, _is_leaf(name, module, kinds[name]))

    def _watch(self, name: str, module: nn.Module, leaf: bool) -> None:
        def enter(module: nn.Module, args: Any) -> None:
            if not leaf and not self._leaf_depth and args and isinstance(args[0], Tensor) and id(args[0]) in self._node:
                self._node[id(args[0])].meta.setdefault("enters", []).append(name)
            self._owners.append(name)
            self._leaf_depth += leaf

        def leave(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            self._owners.pop()
            self._leaf_depth -= leaf
            if self._leaf_depth:
                return
            self.calls[name] += 1
            if leaf:
                self._write_module(name, module, args, kwargs, output)

        # the class's own methods: a scripted module hides them, though its calls heed the hooks
        nn.Module.register_forward_pre_hook(module, enter)
        nn.Module.register_forward_hook(module, leave, with_kwargs=True)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        check_use(func, args)
        output = func(*args, **kwargs)
        if not self._leaf_depth:
            self._write_function(func, args, kwargs, output)
        return output

    def scripted_call(self, function: Any, run: Any, args: Any, kwargs: Any) -> Any:
        """Make a call of a scripted function, which torch functions do not see, and write it down as one node."""
        if self._leaf_depth:
            return run()
        self._leaf_depth += 1
        try:
            output, kind = run(), script_function_kind(function)
        finally:
            self._leaf_depth -= 1
        if next(tensors_in(output), None) is not None:
            with torch._C.DisableTorchFunction():
                inputs = self.nodes_of(tuple(args)), self.nodes_of(dict(kwargs))
                node = self.graph.create_node("call_function", function, *inputs, name=function.name)
                self._bind_output(node, output, kind)
        return output

    def bind(self, tensor: Tensor, node: fx.Node, kind: str, shape: Sequence[int], **meta: Any) -> None:
        node.meta.update(kind=kind, shape=tuple(shape), owner=self._owners[-1], **meta)
        self._node[id(tensor)] = node
        self._alive.append(tensor)

    def nodes_of(self, value: Any, above: tuple[int, ...] = ()) -> Any:
        """The value as fx takes it: tensors become nodes, objects that hold tensors dicts, what else there is None."""
        if isinstance(value, Tensor):
            return self._node.get(id(value)) or self._unwritten(value)
        if isinstance(value, nn.Module | type) or id(value) in above:
            return None
        inside = (*above, id(value))
        if isinstance(value, Mapping):
            return {str(key): self.nodes_of(item, inside) for key, item in value.items()}
        if isinstance(value, tuple | list):
            kind = list if isinstance(value, list) else tuple
            return kind(self.nodes_of(item, inside) for item in value)
        if isinstance(value, slice):
            return slice(*(self.nodes_of(part, inside) for part in (value.start, value.stop, value.step)))
        if isinstance(value, int | float | str | bool | type(None) | torch.dtype):
            return value
        return self.nodes_of(attributes(value), inside) if any(True for _ in tensors_in(value)) else None

    def _unwritten(self, tensor: Tensor) -> fx.Node:
        """A node for a tensor that no recorded call gave: one that the model holds, or one of unknown origin."""
        name = self._held.get(id(tensor))
        with torch._C.DisableTorchFunction():
            node = self.graph.create_node("get_attr", name or UNSEEN)
            self.bind(tensor, node, "attribute" if name else UNSEEN, tensor.shape)
        return node

    def _write_module(self, name: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        with torch._C.DisableTorchFunction():
            node = self.graph.create_node("call_module", name, self.nodes_of(tuple(args)), self.nodes_of(dict(kwargs)))
            self._bind_output(node, output, self._kinds[name], module=name)

    def _write_function(self, func: Any, args: Any, kwargs: Any, output: Any) -> None:
        name = getattr(func, "__name__", type(func).__name__).partition(".")[0]  # of an overload, the operator's
        if name == "__get__" and not isinstance(output, Tensor):
            return
        with torch._C.DisableTorchFunction():
            in_place = name == "__setitem__"
            if not in_place and next(tensors_in(output), None) is None:
                return
            target = func if callable(func) else operator.getitem
            node = self.graph.create_node(
                "call_function", target, self.nodes_of(tuple(args)), self.nodes_of(dict(kwargs)), name=name.strip("_")
            )
            self._bind_output(node, args[0] if in_place else output, function_kind(name))

    def _bind_output(self, node: fx.Node, output: Any, kind: str, **meta: Any) -> None:
        if isinstance(output, Tensor):
            self.bind(output, node, kind, output.shape, **meta)
            return
        node.meta.update(kind=kind, shape=None, owner=self._owners[-1], **meta)
        for position, tensor in enumerate(tensors_in(output)):
            item = self.graph.create_node("call_function", operator.getitem, (node, position))
            self.bind(tensor, item, "split" if kind == "split" else "item", tensor.shape)


def _names_of_tensors(model: nn.Module) -> dict[int, str]:
    """Names of parameters, buffers, and tensors that modules hold as plain attributes, by identity."""
    names: dict[int, str] = {}
    for prefix, module in model.named_modules():
        dot = f"{prefix}." if prefix else ""
        for name, value in [*module._parameters.items(), *module._buffers.items(), *own_attributes(module).items()]:
            for tensor in tensors_in(value):
                names.setdefault(id(tensor), f"{dot}{name}")
    return names
