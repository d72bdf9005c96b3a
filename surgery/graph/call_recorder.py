"""Write down the calls of one forward, torch functions and leaf modules, as nodes of a torch.fx graph.

A recorded value is a tree: a tensor, or lists, tuples, dicts, dataclasses and objects of them. Every node's ``meta``
has the shapes of what it gives as a tree, ``shapes``, and of what it takes, ``input_shapes``; see
:func:`surgery.graph.trees.shape_tree`.
"""

import operator
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode

from surgery.core.surgery_layer import SurgeryLayer
from surgery.graph.kinds import function_kind
from surgery.graph.scripted import inside_scripted, script_function_kind
from surgery.graph.trees import attributes, own_attributes, shape_tree, shapes_of_arguments, tensors_in
from surgery.graph.unsuitable import check_use

UNSEEN = "unseen"  # kind of a tensor that neither the model holds nor a recorded call gave


def _is_leaf(name: str, module: nn.Module, kind: str) -> bool:
    if isinstance(module, SurgeryLayer):
        return module.opaque
    if isinstance(module, torch.jit.ScriptModule) or kind == "norm":
        return True
    return name != "" and (next(module.children(), None) is None or kind in ("act", "scale"))


class CallRecorder(TorchFunctionMode):
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

    def bind(self, tensor: Tensor, node: fx.Node, kind: str, **meta: Any) -> None:
        """Let a node stand for a tensor from here on."""
        self._describe(node, kind, tensor, **meta)
        self._node[id(tensor)] = node
        self._alive.append(tensor)

    def _describe(self, node: fx.Node, kind: str, output: Any, **meta: Any) -> None:
        shapes = shape_tree(output)
        node.meta.update(
            kind=kind,
            shape=shapes if isinstance(output, Tensor) else None,
            shapes=shapes,
            input_shapes=shapes_of_arguments(node.args, node.kwargs),
            owner=self._owners[-1],
            **meta,
        )

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
            self.bind(tensor, node, "attribute" if name else UNSEEN)
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
            self.bind(output, node, kind, **meta)
            return
        self._describe(node, kind, output, **meta)
        for position, tensor in enumerate(tensors_in(output)):
            item = self.graph.create_node("call_function", operator.getitem, (node, position))
            self.bind(tensor, item, "split" if kind == "split" else "item")


def _names_of_tensors(model: nn.Module) -> dict[int, str]:
    """Names of parameters, buffers, and tensors that modules hold as plain attributes, by identity."""
    names: dict[int, str] = {}
    for prefix, module in model.named_modules():
        dot = f"{prefix}." if prefix else ""
        for name, value in [*module._parameters.items(), *module._buffers.items(), *own_attributes(module).items()]:
            for tensor in tensors_in(value):
                names.setdefault(id(tensor), f"{dot}{name}")
    return names
