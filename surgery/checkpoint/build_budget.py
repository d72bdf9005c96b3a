"""How much work the building of a network may be: in proportion to the tensors that it is to hold.

A file says how its network is built, in numbers that cost nothing to write. So building is counted while it goes on,
and ends where it has become more than a network of such tensors can need.
"""

import contextlib
import math
import sys
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules import module as registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map_only

from surgery.core.errors import SourceError
from surgery.transforms.transform import CALL  # or a registered module; an element written is one unit (some 5 ns)

FLOOR = 16_000 * CALL  # what the smallest file may ask for, under a second; timm's largest networks take 7,000 calls
PER_TENSOR = 24 * CALL  # timm's networks take at most eleven calls for each tensor
PYTHON_EVENT = 16  # units of a call of a function, in Python or in C, and of its return (some 0.1 µs each)
REGISTERED = 4_000  # parameters and buffers that may be registered besides those in the file: features_only leaves
REGISTERED_PER_TENSOR = 1.5  # most of a network away after it is built; and surgery takes away norms, layers, heads
PER_ELEMENT = (
    128  # building writes a weight several times, what a transform cuts away too, and lists positions of windows
)
LARGEST = 2**17  # numbers up to this may stand in any file


@dataclass(frozen=True)
class Limits:
    """What whole numbers in a builder's arguments may be; the defaults hold for the smallest file.

    A side of an image or a window stands for as many positions as its square, in loops of Python or of C.

    Attributes:
        total: of all together.
        number: any one argument: a width, a number of classes, a length.
        image: side of an image or a map; a position takes a sixteenth of a number or more (a patch of 32 × 32 pixels).
        window: side of a window, whose positions a builder lists.
    """

    total: int = LARGEST
    number: int = 32_768
    image: int = 1_024
    window: int = 256


class BudgetError(SourceError):
    """Building a network has become more work than a network with these tensors can need."""


@dataclass
class Budget:
    """What building may cost; counts down.

    Attributes:
        tensors: how many tensors the network is to hold; empty ones, which cost a file nothing, are none.
        elements: how many numbers they hold in all.
        longest: the largest dimension of any.
    """

    tensors: int
    elements: int
    longest: int = 0

    def __post_init__(self) -> None:
        self.left = FLOOR + PER_TENSOR * self.tensors + PER_ELEMENT * self.elements

    @classmethod
    def of(cls, tensors: Iterable[Tensor]) -> "Budget":
        """The budget for a network with these tensors."""
        shapes = [tensor.shape for tensor in tensors if tensor.numel()]
        longest = max((max(shape, default=1) for shape in shapes), default=0)
        return cls(len(shapes), sum(shape.numel() for shape in shapes), longest)

    def again(self) -> "Budget":
        """The same before anything was spent."""
        return Budget(self.tensors, self.elements, self.longest)

    @property
    def limits(self) -> Limits:
        """What the whole numbers of a builder's arguments may be."""
        root = math.isqrt(self.elements)
        return Limits(
            total=max(LARGEST, self.elements),
            number=max(Limits.number, 4 * self.longest),
            image=max(Limits.image, 4 * root),
            window=max(Limits.window, root),
        )

    def spend(self, units: int) -> None:
        """Take ``units`` off; raises BudgetError where they are not left."""
        self.left -= units
        if self.left < 0:
            raise BudgetError(
                f"it is more than a network of {self.tensors} tensors with {self.elements} numbers can need"
            )

    @contextlib.contextmanager
    def building(self) -> Iterator[None]:
        """While entered, a builder's work is counted: as :meth:`counting`, and Python's calls, and what it registers.

        A profiler that is at work already is left alone; then Python's calls are not counted.
        """
        allowed = REGISTERED + int(REGISTERED_PER_TENSOR * self.tensors)
        thread = threading.get_ident()

        def register(*_: object) -> None:
            nonlocal allowed
            if threading.get_ident() == thread:
                allowed -= 1
                if allowed < 0:
                    raise BudgetError(
                        f"a network cannot have more parameters than the {self.tensors} tensors that the file holds, "
                        f"beyond {REGISTERED_PER_TENSOR} for each and {REGISTERED}"
                    )

        with contextlib.ExitStack() as stack:
            stack.callback(registration.register_module_parameter_registration_hook(register).remove)
            stack.callback(registration.register_module_buffer_registration_hook(register).remove)
            stack.enter_context(self.counting())
            if sys.getprofile() is None:
                stack.callback(sys.setprofile, None)
                sys.setprofile(self._profile)
            yield

    def _profile(self, frame: object, event: str, argument: object) -> None:
        self.left -= PYTHON_EVENT
        if self.left < 0:
            self.spend(0)

    @contextlib.contextmanager
    def counting(self) -> Iterator[None]:
        """While entered, what this thread builds is counted; BudgetError ends it."""
        thread = threading.get_ident()

        def count(*_: object) -> None:
            if threading.get_ident() == thread:
                self.spend(CALL)

        with contextlib.ExitStack() as stack:
            for register in (
                registration.register_module_module_registration_hook,
                registration.register_module_parameter_registration_hook,
                registration.register_module_buffer_registration_hook,
            ):
                stack.callback(register(count).remove)
            stack.enter_context(_Counting(self))
            yield


class _Counting(TorchDispatchMode):
    """Takes every operator call off a budget, and what it writes, before it is written."""

    def __init__(self, budget: Budget) -> None:
        super().__init__()
        self.budget = budget

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self.budget.spend(CALL)
        if func._schema.is_mutable:
            self.budget.spend(sum(_elements(arg) for arg in args[:1]))
        elif not _is_on_meta(args, kwargs):
            size = _size_of_result(func, args, kwargs)
            self.budget.spend(size if not func.is_view else max(0, size - self.budget.left))
        return func(*args, **kwargs)


def _is_on_meta(args: Any, kwargs: dict[str, Any]) -> bool:
    device = kwargs.get("device")
    if device is not None:
        return torch.device(device).type == "meta"
    tensors = [leaf for leaf in tree_iter((args, kwargs)) if isinstance(leaf, Tensor)]
    return bool(tensors) and all(tensor.is_meta for tensor in tensors)


def _elements(value: Any) -> int:
    return value.numel() if isinstance(value, Tensor) and not value.is_meta else 0


def _size_of_result(func: Any, args: Any, kwargs: dict[str, Any]) -> int:
    """Elements that a call will write, asked of its meta kernel; 0 where only the values decide."""
    args, kwargs = tree_map_only(Tensor, lambda tensor: tensor.to("meta"), (args, kwargs))
    if "device" in kwargs or not any(isinstance(leaf, Tensor) for leaf in tree_iter((args, kwargs))):
        kwargs = kwargs | {"device": "meta"}
    try:
        result = func(*args, **kwargs)
    except Exception:  # no meta kernel, or a call that is wrong: then the call itself raises
        return 0
    return sum(leaf.numel() for leaf in tree_iter(result) if isinstance(leaf, Tensor))
