"""Edits: what a plan consists of, and the hands that carry one out on a model, by name.

An edit is a pure function of (module, arguments): no data, no randomness that outlives the loading of weights. That
is what lets ``load`` rebuild a network from the manifest on the meta device.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import fx, nn

from surgery.core.errors import SurgeryError
from surgery.graph.symbolic import trace_block

HISTORY = "surgery_edits"
NARROW = "narrow"  # the method of the edit that makes layers narrower, before the sites of a plan
MATCH = "match"  # the method of an edit that changed no structure: it tells which order the channels are in


@dataclass(frozen=True)
class Edit:
    """One change to a model.

    Attributes:
        method: registered name of the method that carries it out.
        site: qualified module name.
        role: what the site is.
        channels: (in, out) of the site's convolution as the edit finds it, or (0, 0) where that has no meaning.
        arguments: of the method, JSON values only.
        note: for the reader of the plan.
    """

    method: str
    site: str
    role: str = ""
    channels: tuple[int, int] = (0, 0)
    arguments: dict[str, Any] = field(default_factory=dict)
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"channels": list(self.channels)}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Edit":
        """Raises ValueError on unknown or missing keys or wrong types."""
        types = {"method": str, "site": str, "role": str, "channels": list, "arguments": dict, "note": str}
        if not isinstance(value, dict) or set(value) != set(types):
            raise ValueError(f"an edit has the keys {', '.join(types)}; found {value!r:.200}")
        for key, kind in types.items():
            if not isinstance(value[key], kind):
                raise ValueError(f"edit {key}={value[key]!r:.80}: {kind.__name__} is needed")
        channels = value["channels"]
        if len(channels) != 2 or not all(type(n) is int and n >= 0 for n in channels):
            raise ValueError(f"edit channels={channels!r:.80}: two whole numbers, [in, out], are needed")
        return cls(**value | {"channels": (channels[0], channels[1])})


def history(model: nn.Module) -> tuple[Edit, ...]:
    """The edits that made this model what it is, in order."""
    return getattr(model, HISTORY, ())


def apply(model: nn.Module, edits: Iterable[Edit], *, keep: "dict[str, Kept] | None" = None) -> nn.Module:
    """Carry out edits on a model in place and write them into its history.

    Args:
        keep: which channels a narrowing keeps, by module name; without it the first ones (the tensors are then to be
            loaded).

    Raises:
        SurgeryError: the model is not the one that the edits were planned for.
        ValueError: an edit names an unknown method or arguments.
    """
    from surgery.planning.registry import method_named
    from surgery.transforms.original_weights import accept_original_weights

    accept_original_weights(model)
    done: list[Edit] = []
    try:
        for edit in edits:
            if edit.method == NARROW:
                from surgery.transforms.narrow import narrow_modules

                narrow_modules(model, edit.arguments["widths"], keep)
            elif edit.method != MATCH:
                method_named(edit.method).apply(model, edit)
            done.append(edit)
    finally:
        setattr(model, HISTORY, (*history(model), *done))
    return model


def check_same_order(model: nn.Module, teacher: nn.Module) -> None:
    """Raise ValueError where the channels of two networks were reordered in different ways."""
    orders = [[edit.arguments for edit in history(each) if edit.method == MATCH] for each in (model, teacher)]
    if orders[0] != orders[1]:
        raise ValueError(
            "model and teacher have their channels in different orders: one was matched (surgery.match) and the other "
            "not, or for another conversion; the teacher must be the network that was converted"
        )


Kept = tuple[list[int] | None, list[int] | None]


def submodule(model: nn.Module, name: str, kind: type[nn.Module] = nn.Module) -> Any:
    """``model.get_submodule`` with an error that says what was expected there."""
    try:
        module = model.get_submodule(name)
    except AttributeError:
        raise SurgeryError(f"{type(model).__name__} has no module {name!r}: not the model this plan is for") from None
    if not isinstance(module, kind):
        raise SurgeryError(f"{name!r} is a {type(module).__name__}; the plan was made for a {kind.__name__}")
    return module


def checked_conv(model: nn.Module, edit: Edit) -> nn.Conv2d:
    """The convolution an edit is for, its widths compared with the plan's."""
    conv: nn.Conv2d = submodule(model, edit.site, nn.Conv2d)
    if (conv.in_channels, conv.out_channels) != edit.channels:
        found = f"{conv.in_channels} → {conv.out_channels}"
        raise SurgeryError(
            f"{edit.site!r} maps {found} channels; the plan says {edit.channels[0]} → {edit.channels[1]}"
        )
    return conv


def replace(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put a module where another is, in the same training mode."""
    module.train(submodule(model, name).training)
    model.set_submodule(name, module)


def drop(model: nn.Module, names: Iterable[str]) -> None:
    """Replace modules by nn.Identity, so that the parent's forward and its other names stay as they are."""
    for name in names:
        replace(model, name, nn.Identity())


def drop_calls(model: nn.Module, block_name: str, conv: str, calls: list[list[Any]]) -> None:
    """Rewrite the block as an fx.GraphModule without some calls that follow its convolution ``conv``.

    For activations (and norms) that no module swap can remove, because they are functional or shared.

    Args:
        calls: [n, name] each: the n-th call after the convolution, which must be the one of that name.

    Raises:
        SurgeryError: the block cannot be traced, traces differently in train and eval mode, or holds other calls.
    """
    if not block_name:
        raise SurgeryError("the model's own forward holds a functional activation; put its blocks into modules")
    block = submodule(model, block_name)
    graph = trace_block(block)
    node = next((n for n in graph.nodes if n.op == "call_module" and n.target == conv), None)
    modules = dict(block.named_modules())
    doomed = []
    for step in range(1, max(n for n, _ in calls) + 1):
        node = next(iter(node.users)) if node is not None and len(node.users) == 1 else None
        doomed += [node for n, name in calls if n == step and node is not None and call_name(modules, node) == name]
    if len(doomed) != len(calls):
        raise SurgeryError(f"{block_name!r}: the calls after {conv!r} cannot be told apart in its traced forward")
    for call in doomed:
        call.replace_all_uses_with(call.all_input_nodes[0])
        graph.erase_node(call)
    scripted = next((n.target for n in graph.nodes if isinstance(n.target, torch.jit.ScriptFunction)), None)
    if scripted is not None:  # its code would register it with fx by a name that cannot be looked up
        raise SurgeryError(
            f"{block_name!r} also calls the scripted function {scripted.name!r} elsewhere, which a rewritten forward "
            "cannot hold"
        )
    replace(model, block_name, _as_graph_module(block, graph))


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
