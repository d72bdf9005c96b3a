"""TorchScript inside a model: functions and modules whose inside no recording sees and no edit changes."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import unset_fake_temporarily

from surgery.graph.probes import acts_elementwise

Handler = Callable[[Any, Callable[[], Any], Any, Any], Any]
_SCRIPTED: Any = torch.jit.ScriptFunction
_PLAIN_CALL = _SCRIPTED.__call__
_HANDLERS: dict[int, Handler] = {}  # by thread
_LOCK = threading.Lock()


def inside_scripted(model: nn.Module) -> set[str]:
    """Names of all modules below a scripted one: nothing calls them from Python."""
    outer = [name for name, module in model.named_modules() if isinstance(module, torch.jit.ScriptModule)]
    return {name for name, _ in model.named_modules() if any(name.startswith(f"{o}.") or o == "" for o in outer)} - {""}


def is_scripted_conv(module: nn.Module) -> bool:
    """Whether a module is a 1×1 Conv2d that was scripted or traced."""
    if getattr(module, "original_name", "") != "Conv2d":
        return False
    weight = getattr(module, "weight", None)
    return isinstance(weight, torch.Tensor) and tuple(weight.shape[2:]) == (1, 1)


def script_functions(block: nn.Module) -> list[Callable[..., Any]]:
    """Scripted functions among the global names that the forwards of a block and of its parts may use."""
    scopes = [getattr(type(module).forward, "__globals__", {}) for module in block.modules()]
    functions = (value for scope in scopes for value in scope.values())
    return [*dict.fromkeys(value for value in functions if isinstance(value, torch.jit.ScriptFunction))]


def script_function_kind(function: Any) -> str:
    """``act`` for a function that maps each element of one map alone, else ``other``."""
    with unset_fake_temporarily(), torch._C.DisableTorchFunction():
        return "act" if acts_elementwise(function) else "other"


@contextlib.contextmanager
def calls_seen(handler: Handler) -> Iterator[None]:
    """While entered, calls of scripted functions go to ``handler(function, run, args, kwargs)``.

    The interpreter of TorchScript runs without Python: a TorchFunctionMode does not see it, and a TorchDispatchMode
    sees its operators but not which function they belong to. So the call operator of the class is replaced while any
    thread is in here. Calls of other threads run as ever: handlers belong to the thread that has entered.
    """
    thread = threading.get_ident()
    outer = _HANDLERS.get(thread)
    with _LOCK:
        _HANDLERS[thread] = handler
        _SCRIPTED.__call__ = _call
    try:
        yield
    finally:
        with _LOCK:
            if outer is None:
                del _HANDLERS[thread]
            else:
                _HANDLERS[thread] = outer
            if not _HANDLERS:
                _SCRIPTED.__call__ = _PLAIN_CALL


def _call(function: Any, *args: Any, **kwargs: Any) -> Any:
    handler = _HANDLERS.get(threading.get_ident())
    if handler is None:
        return _PLAIN_CALL(function, *args, **kwargs)
    return handler(function, lambda: _PLAIN_CALL(function, *args, **kwargs), args, kwargs)
