"""What a builder may be asked for: names that its registry lists, and plain values that describe an architecture.

A source comes from a file, so nothing in it may name a file, an address or weights: building reads nothing.
"""

import dataclasses
import difflib
import functools
import inspect
import math
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

import timm
import torchvision
from torch import nn

from surgery.checkpoint.build_budget import LARGEST, Limits
from surgery.core.errors import SourceError

MOST_VALUES = 1_000
DEEPEST = 8
LONGEST = 200
# arguments that name weights, a file or an address, or that replace what a builder knows of its weights
_OUTSIDE = re.compile(
    r"pretrained\w*|weights(_\w*)?|checkpoint(_path|_file)?|cache_dir|(default|feature|model)_cfg|state_dict|token|hf_\w*"
    r"|(\w+_)?(path|file|filename|url|uri|dir|folder|hub|repo|repo_id|revision)s?"
)
_OF_ARCHITECTURE = re.compile(r"(\w+_)?drop_path|pretrained_window_sizes?")  # but these are plain numbers
_WINDOW = re.compile(r"window|kernel|grid|patch|stride|dilat|pool|bins|block_size|halo|neigh|ws")
_IMAGE = re.compile(r"im(g|age)|resolution|size")
_ADDRESS = re.compile(r"[/\\:~\x00-\x1f]|\.(pth?|tar|bin|ckpt|safetensors|npz|onnx|jit|json|ya?ml)$", re.IGNORECASE)
_OF_EVERY_TIMM_BUILDER = ("features_only", "out_indices", "feature_cls", "scriptable", "exportable", "no_jit")


def plain_arguments(kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments as JSON holds them (tuples as lists), without those that ask for no weights (``weights=None``).

    Raises:
        SourceError: an argument that names weights, a file or an address, or a value that is not plain.
    """
    if not isinstance(kwargs, dict):
        raise SourceError(f"kwargs={kwargs!r}: a dict of keyword arguments is needed")
    wanted = {key: value for key, value in kwargs.items() if not (_is_outside(key) and value in (None, False))}
    return _Plain().value("kwargs", wanted, 0)


def check_numbers(kwargs: dict[str, Any], limits: Limits = Limits()) -> None:  # noqa: B008 (frozen)
    """Raise SourceError where the whole numbers of plain arguments are more than a network may be asked for."""
    total = 0
    for name, number in _whole_numbers("", kwargs):
        total += number
        largest = _limit(name, limits)
        if number > largest:
            raise SourceError(f"kwargs: {name}={number:.6g}; at most {largest} fits such a network")
    if total > limits.total:
        raise SourceError(f"kwargs: whole numbers add up to {total:.6g}; at most {limits.total} fits such a network")


def _limit(name: str, limits: Limits) -> int:
    if _WINDOW.search(name):
        return limits.window
    return limits.image if _IMAGE.search(name) else limits.number


def check_known(function: Callable[..., Any], kwargs: dict[str, Any], *, shared: bool) -> None:
    """Raise SourceError unless a builder takes arguments of these names.

    Args:
        shared: whether the builder hands on what it does not name to functions and classes of its module, as timm's
            and torchvision's do.
    """
    accepted = _names(function, shared)
    for name in kwargs:
        if accepted is not None and name not in accepted:
            near = difflib.get_close_matches(name, accepted, 3) or sorted(accepted)[:8]
            raise SourceError(
                f"got an unexpected keyword argument {name!r:.80}; of the {len(accepted)} that {function.__name__} "
                f"takes, near are {', '.join(near)}"
            )


def check_timm_name(name: str) -> None:
    """Raise SourceError unless timm's registry lists a model, ``NAME`` or ``NAME.TAG``."""
    if not isinstance(name, str) or not re.fullmatch(r"\w+(\.\w+)?", name) or not timm.is_model(name):
        raise SourceError(f"name={name!r:.200}: the name of a model that timm lists is needed")
    if "." in name:
        try:
            timm.get_pretrained_cfg(name, allow_unregistered=False)
        except RuntimeError as error:
            raise SourceError(f"name={name!r}: {error}") from None


def check_torchvision_name(name: str) -> None:
    """Raise SourceError unless torchvision's registry lists a model."""
    if not isinstance(name, str) or name not in torchvision.models.list_models():
        raise SourceError(f"name={name!r:.200}: the name of a model that torchvision lists is needed")


def _is_outside(name: object) -> bool:
    return isinstance(name, str) and bool(_OUTSIDE.fullmatch(name)) and not _OF_ARCHITECTURE.fullmatch(name)


class _Plain:
    """Walks through arguments, and counts them."""

    def __init__(self) -> None:
        self.count = 0

    def value(self, where: str, value: Any, depth: int) -> Any:
        self.count += 1
        if depth > DEEPEST or self.count > MOST_VALUES:
            raise SourceError(f"kwargs: at most {MOST_VALUES} values, nested at most {DEEPEST} deep, are accepted")
        if isinstance(value, dict):
            return {self.key(where, key): self.value(f"{where}.{key}", item, depth + 1) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.value(f"{where}[{index}]", item, depth + 1) for index, item in enumerate(value)]
        return _leaf(where, value)

    def key(self, where: str, key: Any) -> str:
        if not isinstance(key, str) or len(key) > LONGEST:
            raise SourceError(f"{where} has the key {key!r:.80}, which cannot be written as JSON: a name is needed")
        if _is_outside(key):
            raise SourceError(
                f"{where}.{key}: what names weights, a file or an address is no part of an architecture; a network is "
                "built without, then load_state_dict() gives it weights (load never downloads)"
            )
        return key


def _leaf(where: str, value: Any) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        if len(value) > LONGEST or _ADDRESS.search(value):
            raise SourceError(f"{where}={value!r:.80}: a short text that names no file and no address is needed")
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value) or abs(value) > LARGEST:
            raise SourceError(f"{where}={value!r}: a number of at most {LARGEST} is needed")
        return float(value)
    raise SourceError(
        f"{where}={value!r:.80} cannot be written as JSON; register_builder a function that takes plain values"
    )


def _whole_numbers(name: str, value: Any) -> Iterator[tuple[str, int]]:
    """Magnitudes, each with the name of the argument that holds it, however deep in lists."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _whole_numbers(key, item)
    elif isinstance(value, list):
        for item in value:
            yield from _whole_numbers(name, item)
    elif isinstance(value, int):
        yield name, abs(value)


@functools.cache
def _names(function: Callable[..., Any], shared: bool) -> frozenset[str] | None:
    """Names of the arguments that a builder takes; None where it takes any."""
    own = _parameters(function)
    names = {name for name in own if own[name].kind is not inspect.Parameter.VAR_KEYWORD}
    takes_any = not own or len(names) < len(own)
    if takes_any and not shared:
        return None
    if takes_any:
        names |= set(_OF_EVERY_TIMM_BUILDER) if function.__module__.startswith("timm.") else set()
        for other in _handed_on_to(function):
            names |= set(_parameters(other))
    return frozenset(name for name in names - {"self", "args", "kwargs"} if not _is_outside(name))


def _handed_on_to(function: Callable[..., Any]) -> list[Callable[..., Any]]:
    """Classes and functions of a builder's module that what it does not name itself may be for."""
    module = vars(sys.modules[function.__module__]).values()
    classes = [v for v in module if isinstance(v, type) and (issubclass(v, nn.Module) or dataclasses.is_dataclass(v))]
    functions = [v for v in module if inspect.isfunction(v) and v.__module__ == function.__module__]
    kinds = inspect.Parameter
    passing = [f for f in functions if any(p.kind is kinds.VAR_KEYWORD for p in _parameters(f).values())]
    return [*classes, *passing]


def _parameters(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    try:
        return dict(inspect.signature(function).parameters)
    except (TypeError, ValueError):  # written in C
        return {}
