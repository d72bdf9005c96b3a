"""Forwards that begin at a part of a network: what ran before it is remembered, and not computed again."""

import contextlib
import copy
from collections.abc import Container, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from surgery.core.eval_mode import eval_mode
from surgery.graph import ModelGraph
from surgery.graph.skeleton import tensors
from surgery.sensitivity_analysis.call_log import CallLog


def sharing_copy(model: nn.Module, own: nn.Module | None = None) -> nn.Module:
    """A copy of a network that holds the same tensors, but for copies of those of its part ``own``."""
    owned = set() if own is None else {id(tensor) for tensor in tensors(own)}
    memo: dict[int, Any] = {id(tensor): tensor for tensor in tensors(model) if id(tensor) not in owned}
    return copy.deepcopy(model, memo)


class Recalled(nn.Module):
    """Stands for a module that has run: gives what it gave.

    Args:
        module: it.
        values: what all such modules of a network gave for the batch at hand, by name.
        name: of the module.
    """

    def __init__(self, module: nn.Module, values: dict[str, Any], name: str) -> None:
        super().__init__()
        self.values, self.name = values, name
        object.__setattr__(self, "module", module)  # not as a part: nothing is to look for layers in it

    def __getattr__(self, name: str) -> Any:
        """What else the network asks of the module (a patch embedding's ``grid_size``)."""
        return getattr(self.__dict__["module"], name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.values[self.name]

    def __deepcopy__(self, memo: dict[int, Any]) -> "Recalled":
        return Recalled(self.__dict__["module"], self.values, self.name)  # the batch at hand is every copy's


class _Arrived(BaseException):
    """The forward has come to the part."""


class Resumable:
    """A network whose forwards on some batches can begin at a part, which moves forward.

    Attributes:
        part: qualified name of the part; "" is the whole network.
        inputs: what the part takes, batch after batch.

    Args:
        model: not changed.
        batches: (N, C, H, W) each.
    """

    def __init__(self, model: nn.Module, graph: ModelGraph, log: CallLog, batches: Sequence[Tensor]) -> None:
        self.model, self.batches, self._graph, self._log = model, batches, graph, log
        self._reset()

    def _reset(self) -> None:
        self.part, self.inputs = "", list(self.batches)
        self._at_hand: dict[str, Any] = {}
        self._known: list[dict[str, Any]] = [{} for _ in self.batches]
        self._resumed = sharing_copy(self.model)

    def move_to(self, part: str) -> None:
        """Let forwards begin at another part; to one that begins earlier than the last they run from the beginning."""
        if part == self.part:
            return
        if self._log.calls[part].begin < self._log.calls[self.part].begin:
            self._reset()
        before = self._log.done_before(part)
        needed = {name for name in before if self._is_read(name, before)}
        gathered = [self._gather(part, before, needed, number) for number in range(len(self.batches))]
        self._known = [values for values, _ in gathered]
        self.inputs = [taken for _, taken in gathered]
        self.part, self._at_hand = part, {}
        self._resumed = sharing_copy(self.model)
        for name in before:
            own = self._resumed.get_submodule(name)
            self._resumed.set_submodule(name, Recalled(own, self._at_hand, name))

    def run(self, number: int, replacement: nn.Module | None = None) -> Any:
        """What the network gives for a batch, with another module in the part's place where there is one."""
        self._remind(number)
        if self.part == "":
            return (replacement or self._resumed)(self.batches[number])
        own = self._resumed.get_submodule(self.part)
        self._resumed.set_submodule(self.part, own if replacement is None else replacement)
        try:
            return self._resumed(self.batches[number])
        finally:
            self._resumed.set_submodule(self.part, own)

    def _remind(self, number: int) -> None:
        self._at_hand.clear()
        self._at_hand.update(self._known[number])

    def _gather(
        self, part: str, done: Sequence[str], needed: Container[str], number: int
    ) -> tuple[dict[str, Any], Tensor]:
        """What modules give for a batch, of those that are not needed the shape alone, and what the part takes."""
        gathered: dict[str, Any] = {}
        taken: list[Tensor] = []

        def keep(name: str, output: Any) -> None:
            gathered[name] = output if name in needed else _shape_alone(output)

        def arrive(module: nn.Module, args: Any) -> None:
            taken.append(args[0])
            raise _Arrived

        self._remind(number)
        modules = dict(self._resumed.named_modules())
        handles = [
            modules[name].register_forward_hook(lambda _, args, output, name=name: keep(name, output)) for name in done
        ]
        handles.append(modules[part].register_forward_pre_hook(arrive))
        try:
            with torch.no_grad(), eval_mode(self._resumed), contextlib.suppress(_Arrived):
                self._resumed(self.batches[number])
        finally:
            for handle in handles:
                handle.remove()
        return gathered, taken[0]

    def _is_read(self, name: str, done: Sequence[str]) -> bool:
        """Whether something outside of the modules that are done reads what one of them gave."""
        inside = [node for node in self._graph if _lies_in(node, name)]
        users = {user for node in inside for user in node.users if not _lies_in(user, name)}
        return any(not any(_lies_in(user, other) for other in done) for user in users)


def _shape_alone(output: Any) -> Any:
    """A tensor of the same shape that takes no memory; anything else as it is."""
    return output.new_zeros(()).expand(output.shape) if isinstance(output, Tensor) else output


def _lies_in(node: Any, module: str) -> bool:
    path = node.meta.get("module") or node.meta.get("owner") or ""
    return path == module or path.startswith(f"{module}.")
