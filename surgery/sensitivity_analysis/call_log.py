"""When the modules of a network run in a forward, and what they take and give."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from surgery.core.eval_mode import eval_mode
from surgery.graph.trees import tensors_in


@dataclass
class Call:
    """The calls of one module.

    Attributes:
        count: of calls.
        begin, end: ticks of the last call.
        single: whether it took one feature map (N, C, H, W) and nothing else, and gave one tensor.
        gives_tensors: whether it gave any tensor.
    """

    count: int = 0
    begin: int = 0
    end: int = 0
    single: bool = False
    gives_tensors: bool = False


class CallLog:
    """The calls of every module in one forward in eval mode.

    Args:
        image: (1, C, H, W), as the network takes it.
    """

    def __init__(self, model: nn.Module, image: Tensor) -> None:
        self.model = model
        self.calls = {name: Call() for name, _ in model.named_modules()}
        self._tick = 0
        handles = [handle for name, module in model.named_modules() for handle in self._watch(name, module)]
        try:
            with torch.inference_mode(), eval_mode(model):
                model(image)
        finally:
            for handle in handles:
                handle.remove()

    def _watch(self, name: str, module: nn.Module) -> tuple[torch.utils.hooks.RemovableHandle, ...]:
        def before(module: nn.Module, args: Any, kwargs: Any) -> None:
            self._tick += 1
            call = self.calls[name]
            call.count, call.begin = call.count + 1, self._tick
            call.single = len(args) == 1 and not kwargs and isinstance(args[0], Tensor) and args[0].ndim == 4

        def after(module: nn.Module, args: Any, output: Any) -> None:
            self._tick += 1
            call = self.calls[name]
            call.end, call.single = self._tick, call.single and isinstance(output, Tensor)
            call.gives_tensors = next(tensors_in(output), None) is not None

        return module.register_forward_pre_hook(before, with_kwargs=True), module.register_forward_hook(after)

    def part_around(self, names: Iterable[str]) -> str:
        """The smallest module around some that runs once and maps one feature map to one tensor; "" is the network."""
        paths = [name.split(".") for name in names]
        shared = paths[0][:-1] if len(paths) == 1 else _shared(paths)
        while shared:
            call = self.calls[".".join(shared)]
            if call.single and call.count == 1:
                return ".".join(shared)
            shared = shared[:-1]
        return ""

    def parent(self, part: str) -> str:
        """The next part around one."""
        return self.part_around([part])

    def done_before(self, part: str, within: str = "") -> list[str]:
        """The largest modules that have run, once, when a part begins: what they gave is all that it needs of them."""
        if part == "":
            return []
        begin, names = self.calls[part].begin, []
        for child, _ in self.model.get_submodule(within).named_children():
            name = f"{within}.{child}".lstrip(".")
            call = self.calls[name]
            if part.startswith(f"{name}."):
                names += self.done_before(part, name)
            elif name != part and call.count == 1 and call.end < begin and call.gives_tensors:
                names.append(name)
        return names


def _shared(paths: list[list[str]]) -> list[str]:
    """The path that all begin with, and that is none of them itself."""
    shared = []
    for parts in zip(*(path[:-1] for path in paths), strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return shared
