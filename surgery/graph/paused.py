"""Forward passes that stop at chosen modules and go on later, many of them side by side.

What a layer reads in every batch can so be looked at before any batch goes on behind it, at the price of one forward
per batch. Each pass is a greenlet: the model's own code runs, whatever it is, on one thread.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import torch
from greenlet import getcurrent, greenlet
from torch import Tensor, nn

from surgery.core.checked_model import first_weight
from surgery.core.errors import TraceError
from surgery.core.eval_mode import eval_mode
from surgery.graph.place import Place


@dataclass(eq=False)
class Forward:
    """One pass. ``values`` holds the tensors at the kept places that it has come by, until they are deleted."""

    owner: "PausableModel"
    image: Tensor
    values: dict[Place, Tensor] = field(default_factory=dict)
    at: Place | None = None
    _greenlet: Any = None

    def advance(self, point: Place) -> Tensor:
        """Run until the pause at ``point``; returns the tensor there.

        Raises:
            TraceError: the pass ends without coming by.
        """
        if self._greenlet is None:
            self._greenlet = greenlet(lambda: self.owner.model(self.image))
            self.owner.passes[self._greenlet] = self
        while self.at != point:
            if self._greenlet.dead:
                raise TraceError(f"a forward of {type(self.owner.model).__name__} did not come by {point}")
            with torch.no_grad(), self.owner.autocast():
                self._greenlet.switch()
        return self.values[point]

    def end(self) -> None:
        """Give the pass up, and all that it holds."""
        self.values.clear()
        if self._greenlet is not None:
            self.owner.passes.pop(self._greenlet, None)
            if not self._greenlet.dead:
                self._greenlet.throw()
            self._greenlet = None


class PausableModel:
    """While entered: a model in eval mode whose passes stop at ``pauses`` and keep what is at ``kept``.

    Args:
        pauses: where passes stop, before the module runs (an input) or after it (an output).
        kept: further places whose tensors are kept in passing.
        dtype: of autocast; None leaves it off.
    """

    def __init__(
        self,
        model: nn.Module,
        pauses: Collection[Place],
        kept: Collection[Place] = (),
        dtype: torch.dtype | None = None,
    ) -> None:
        self.weight, self.dtype = first_weight(model), dtype
        self.model, self.pauses, self.kept = model, frozenset(pauses), frozenset(kept)
        self.passes: dict[Any, Forward] = {}
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> "PausableModel":
        self._mode = eval_mode(self.model)
        self._mode.__enter__()
        for point in self.pauses | self.kept:
            module = self.model.get_submodule(point.module)
            if point.output:
                self._handles.append(module.register_forward_hook(self._after(point)))
            else:
                self._handles.append(module.register_forward_pre_hook(self._before(point), with_kwargs=True))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for forward in list(self.passes.values()):
            forward.end()
        for handle in self._handles:
            handle.remove()
        self._mode.__exit__(kind, error, trace)

    def start(self, image: Tensor) -> Forward:
        """A pass of one batch (N, C, H, W); it runs when it is advanced."""
        return Forward(self, image.to(self.weight))

    def autocast(self) -> torch.autocast:
        """The context of every stretch of a pass."""
        return torch.autocast(
            self.weight.device.type, dtype=self.dtype or torch.bfloat16, enabled=self.dtype is not None
        )

    def _before(self, point: Place) -> Callable[[nn.Module, Any, Any], None]:
        return lambda module, args, kwargs: self._arrive(point, next(iter((*args, *kwargs.values()))))

    def _after(self, point: Place) -> Callable[[nn.Module, Any, Any], None]:
        return lambda module, args, output: self._arrive(point, output)

    def _arrive(self, point: Place, value: Tensor) -> None:
        forward = self.passes.get(getcurrent())
        if forward is None:
            return
        forward.values[point] = value
        if point in self.pauses:
            forward.at = point
            getcurrent().parent.switch()
            forward.at = None
            forward.values.pop(point, None)
