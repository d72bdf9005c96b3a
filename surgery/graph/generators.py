"""The random generators that a model's code draws from: Python's, NumPy's and torch's, on the CPU."""

import contextlib
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch


@contextlib.contextmanager
def generators_kept() -> Iterator[Callable[[], set[str]]]:
    """Put the generators back to where they were; what is given says which have been drawn from."""
    before = _state()
    try:
        yield lambda: {name for name, state in _state().items() if state != before[name]}
    finally:
        random.setstate(before["random"])
        np.random.set_state(before["numpy.random"])
        torch.random.default_generator.set_state(_bytes(before["torch.random"]))


def _state() -> dict[str, Any]:
    kind, keys, *rest = np.random.get_state()
    torch_state = torch.random.default_generator.get_state()
    return {
        "random": random.getstate(),
        "numpy.random": (kind, np.asarray(keys).tolist(), *rest),
        "torch.random": torch_state.numpy().tobytes(),
    }


def _bytes(state: bytes) -> torch.Tensor:
    return torch.from_numpy(np.frombuffer(state, dtype=np.uint8).copy())
