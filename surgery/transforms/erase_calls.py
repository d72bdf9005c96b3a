"""Rewrite one block without some calls that follow its convolution.

For activations (and norms) that no module swap can remove, because they are functional or shared.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from surgery.core.errors import SurgeryError, is_whole
from surgery.graph.symbolic import trace_block
from surgery.transforms.field_checks import module_name
from surgery.transforms.modules_by_name import put, submodule
from surgery.transforms.transform import CALL, Choice, Transform, transform

PER_TRACED_MODULE = 10 * CALL  # a block is traced twice, in train and in eval mode
MOST_CALLS = 16
FURTHEST_CALL = 1_000


@transform("erase_calls")
@dataclass(frozen=True)
class EraseCalls(Transform):
    """The block becomes an fx.GraphModule without the calls.

    Attributes:
        block: its qualified name.
        conv: name, inside the block, of the convolution that the calls follow.
        calls: (n, name) each: the n-th call after the convolution, which must be the one of that name.
    """

    rewrites = True
    block: str
    conv: str
    calls: tuple[tuple[int, str], ...]

    def __post_init__(self) -> None:
        if not isinstance(self.block, str):
            raise ValueError(f"block={self.block!r:.80}: a module's name is needed")
        module_name("conv", self.conv)
        object.__setattr__(self, "calls", _checked_calls(self.calls))

    def apply(self, model: nn.Module, choice: Choice = None) -> None:
        if not self.block:
            raise SurgeryError("the model's own forward holds a functional activation; put its blocks into modules")
        block = submodule(model, self.block)
        graph = trace_block(block)
        for call in self._located(block, graph):
            call.replace_all_uses_with(call.all_input_nodes[0])
            graph.erase_node(call)
        scripted = next((n.target for n in graph.nodes if isinstance(n.target, torch.jit.ScriptFunction)), None)
        if scripted is not None:  # its code would register it with fx by a name that cannot be looked up
            raise SurgeryError(
                f"{self.block!r} also calls the scripted function {scripted.name!r} elsewhere, which a rewritten "
                "forward cannot hold"
            )
        put(model, self.block, _as_graph_module(block, graph))

    def _located(self, block: nn.Module, graph: fx.Graph) -> list[fx.Node]:
        """The calls in the block's traced forward."""
        node = next((n for n in graph.nodes if n.op == "call_module" and n.target == self.conv), None)
        modules = dict(block.named_modules())
        located = []
        for step in range(1, max(n for n, _ in self.calls) + 1):
            node = next(iter(node.users)) if node is not None and len(node.users) == 1 else None
            if node is not None:
                located += [node for n, name in self.calls if n == step and call_name(modules, node) == name]
        if len(located) != len(self.calls):
            raise SurgeryError(
                f"{self.block!r}: the calls after {self.conv!r} cannot be told apart in its traced forward"
            )
        return located

    def work(self, model: nn.Module) -> int:
        return PER_TRACED_MODULE * sum(1 for _ in submodule(model, self.block).modules())


def _checked_calls(calls: Any) -> tuple[tuple[int, str], ...]:
    if not isinstance(calls, list | tuple) or not 0 < len(calls) <= MOST_CALLS or not all(map(_is_call, calls)):
        raise ValueError(f"calls={calls!r:.120}: 1 to {MOST_CALLS} of [n, name], 1 <= n <= {FURTHEST_CALL}, are needed")
    return tuple((int(n), str(name)) for n, name in calls)


def _is_call(value: Any) -> bool:
    pair = isinstance(value, list | tuple) and len(value) == 2
    return pair and is_whole(value[0], 1, FURTHEST_CALL) and isinstance(value[1], str) and bool(value[1])


def call_name(modules: dict[str, nn.Module], node: fx.Node) -> str:
    """What a call is called, the same in a recorded and in a traced graph: a class's or a function's name."""
    if node.op == "call_module":
        module = modules.get(str(node.meta.get("module", node.target)))
        return type(module).__name__
    return getattr(node.target, "__name__", str(node.target)).strip("_")


def _as_graph_module(block: nn.Module, graph: fx.Graph) -> fx.GraphModule:
    rewritten = fx.GraphModule(block, graph, class_name=type(block).__name__)
    for name, module in block.named_children():
        if not hasattr(rewritten, name):
            rewritten.add_module(name, module)
    for name, value in vars(block).items():
        if not name.startswith("_") and not hasattr(rewritten, name):
            setattr(rewritten, name, value)
    return rewritten
