"""Edits: what a plan consists of, and the hands that carry one out on a model, by name.

An edit is a pure function of (module, arguments): no data, no randomness that outlives the loading of weights. That
is what lets ``load`` rebuild a network from the manifest on the meta device.
"""

import copy
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import fx, nn

from surgery.errors import SurgeryError
from surgery.graph.symbolic import trace_block

HISTORY = "surgery_edits"


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
            raise ValueError(f"an edit has the keys {', '.join(types)}; found {value!r}")
        for key, kind in types.items():
            if not isinstance(value[key], kind):
                raise ValueError(f"edit {key}={value[key]!r}: {kind.__name__} is needed")
        return cls(**value | {"channels": tuple(value["channels"])})


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
    from surgery.methods import method_named

    for edit in edits:
        if edit.method == "narrow":
            from surgery.narrow import narrow_modules

            narrow_modules(model, edit.arguments["widths"], keep)
        else:
            method_named(edit.method).apply(model, edit)
        setattr(model, HISTORY, (*history(model), edit))
    return model


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
        raise SurgeryError(f"{edit.site!r} maps {found} channels; the plan says {edit.channels[0]} → {edit.channels[1]}")
    return conv


def replace(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put a module where another is, in the same training mode."""
    module.train(submodule(model, name).training)
    model.set_submodule(name, module)


def drop(model: nn.Module, names: Iterable[str]) -> None:
    """Replace modules by nn.Identity, so that the parent's forward and its other names stay as they are."""
    for name in names:
        replace(model, name, nn.Identity())


def drop_calls(model: nn.Module, block_name: str, after: str, count: int) -> None:
    """Rewrite the block as an fx.GraphModule without the ``count`` calls that follow its module ``after``.

    For activations (and norms) that no module swap can remove, because they are functional or shared.

    Raises:
        SurgeryError: the block cannot be traced, or traces differently in train and eval mode.
    """
    block = submodule(model, block_name)
    graph = trace_block(block)
    call = next((n for n in graph.nodes if n.op == "call_module" and n.target == after), None)
    for _ in range(count):
        if call is None or len(call.users) != 1:
            raise SurgeryError(f"{block_name!r}: the calls after {after!r} cannot be told apart")
        following = next(iter(call.users))
        following.replace_all_uses_with(call)
        graph.erase_node(following)
    rewritten = _as_graph_module(block, graph)
    if block_name:
        replace(model, block_name, rewritten)
    else:
        raise SurgeryError("the model's own forward holds a functional activation; wrap the block in a module")


def _as_graph_module(block: nn.Module, graph: fx.Graph) -> fx.GraphModule:
    rewritten = fx.GraphModule(block, graph, class_name=type(block).__name__)
    for name, module in block.named_children():
        if not hasattr(rewritten, name):
            rewritten.add_module(name, module)
    for name, value in vars(block).items():
        if not name.startswith("_") and not hasattr(rewritten, name):
            setattr(rewritten, name, value)
    return rewritten


def meta_copy(model: nn.Module) -> nn.Module:
    """A copy of the model on the meta device, made without copying a weight."""
    memo: dict[int, Any] = {}
    for tensor in [*model.parameters(), *model.buffers()]:
        fresh = torch.empty_like(tensor, device="meta")
        memo[id(tensor)] = nn.Parameter(fresh, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else fresh
    return copy.deepcopy(model, memo)
