"""How a model is made again: a builder's name and its keyword arguments, never code."""

import contextlib
import difflib
import functools
import inspect
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

import timm
import torch
import torchvision
from torch import Tensor, nn

from surgery.checkpoint.build_budget import Budget, BudgetError
from surgery.checkpoint.builder_arguments import (
    check_known,
    check_numbers,
    check_timm_name,
    check_torchvision_name,
    plain_arguments,
)
from surgery.checkpoint.pretrained_weights import from_cache, weights_at_hand
from surgery.checkpoint.source_inference import guesses, input_size_of
from surgery.core.errors import SourceError, SurgeryError, check_choice, described
from surgery.core.registering import check_name_free
from surgery.graph import ModelGraph, record
from surgery.graph.input_size import InputSize
from surgery.graph.skeleton import meta_copy
from surgery.transforms.carry_out import apply
from surgery.transforms.history import history
from surgery.transforms.transform import CALL, Transform

Builder = Callable[..., nn.Module]
_BUILDERS: dict[str, Builder] = {}
MEMORY = "surgery_source"


@dataclass(frozen=True)
class Source:
    """A builder (``timm``, ``torchvision`` or a registered one), the model's name there, and JSON keyword arguments.

    Tuples are kept as lists, as JSON has them; ``pretrained=False`` and ``weights=None`` are left out.

    Raises:
        SourceError: builder and name are no texts, or an argument is not plain (None, a bool, a number, a short text,
            lists and dicts of these) or names weights, a file or an address.
    """

    builder: str
    name: str = ""
    kwargs: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for key in ("builder", "name"):
            value = getattr(self, key)
            if not isinstance(value, str):
                raise SourceError(f"{key}={value!r:.80}: a text is needed")
        object.__setattr__(self, "kwargs", plain_arguments(self.kwargs))

    def __str__(self) -> str:
        name = f"{self.builder}/{self.name}" if self.name else self.builder
        return f"{name:.200} {self.kwargs!s:.400}" if self.kwargs else f"{name:.200}"


def register_builder(name: str) -> Callable[[Builder], Builder]:
    """Decorator: let ``save`` and ``load`` rebuild models by calling a function with JSON keyword arguments.

    Tuples come back as lists. What such a function opens or downloads is its own affair: ``load`` calls it with the
    arguments that the file holds.

    Raises:
        ValueError: the name is taken by another function, or holds a slash.
    """
    if "/" in name or name in ("timm", "torchvision", ""):
        raise ValueError(f"builder name {name!r}: a name without a slash, other than timm and torchvision, is needed")

    def register(function: Builder) -> Builder:
        earlier = _BUILDERS.get(name)
        check_name_free(f"builder {name!r}", function, earlier, f", by {earlier.__qualname__}" if earlier else "")
        _BUILDERS[name] = function
        return function

    return register


def parse_source(text: str, kwargs: dict[str, Any] | None = None) -> Source:
    """Read ``timm/resnet50``, ``torchvision/resnet50``, a registered builder's name, or a bare timm name.

    Raises:
        SourceError: no such model, with the nearest names.
    """
    builder, _, name = text.partition("/")
    if builder in _BUILDERS and not name:
        return Source(builder, "", kwargs or {})
    if builder == "torchvision":
        listed = torchvision.models.list_models()
    else:
        builder, name = "timm", name if builder == "timm" else text
        listed = timm.list_models()
    try:
        check_choice(f"{builder} model", name.split(".")[0], listed)
    except ValueError:
        near = difflib.get_close_matches(name, listed, 3)
        hint = f"; near are {', '.join(near)}" if near else ""
        raise SourceError(f"there is no model {text!r} in {builder} (which has {len(listed)}){hint}") from None
    return Source(builder, name, kwargs or {})


def create(text: str, *, pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Make a model that remembers how: ``create("timm/resnet50", num_classes=10)``.

    Args:
        text: as for :func:`parse_source`.
        pretrained: load the builder's pretrained weights (a download). Without it nothing is downloaded, no part of
            the network either.
        **kwargs: of the builder, JSON values.
    """
    source = parse_source(text, kwargs)
    with weights_at_hand(source.builder, source.name, pretrained):
        model = build(source, pretrained=pretrained)
    setattr(model, MEMORY, source)
    return model


def build(source: Source, *, pretrained: bool = False, budget: Budget | None = None) -> nn.Module:
    """Call the source's builder.

    Args:
        budget: what it may cost; default: anything.

    Raises:
        BudgetError: it costs more.
        SourceError: the builder is not registered here, or refuses the arguments.
    """
    try:
        builder = _builder(source, pretrained)
        if budget is not None:
            check_numbers(source.kwargs, budget.limits)
        with budget.building() if budget is not None else contextlib.nullcontext():
            return _call(builder, source.kwargs)
    except BudgetError as error:
        raise BudgetError(f"{source} cannot be built: {error}") from error
    except Exception as error:  # a builder may raise anything, for arguments that nobody thought of
        raise SourceError(f"{source} cannot be built: {described(error)}") from error


def _builder(source: Source, pretrained: bool) -> Builder:
    """The function that makes the source's model of its arguments, once name and arguments are known to be right."""
    if source.builder == "timm":
        check_timm_name(source.name)
        check_known(timm.model_entrypoint(source.name), source.kwargs, shared=True)
        cached = from_cache(source.name) if pretrained else {}
        return functools.partial(timm.create_model, source.name, pretrained=pretrained, **cached)
    if source.builder == "torchvision":
        return _torchvision_builder(source, pretrained)
    function = _BUILDERS.get(source.builder)
    if function is None:
        builders = ", ".join(["timm", "torchvision", *_BUILDERS])
        raise SourceError(
            f"builder {source.builder!r:.80} is not registered here (known: {builders}); import what registers it "
            "(on the command line: --import MODULE)"
        )
    if source.name:
        raise SourceError(f"name={source.name!r:.80}: a name goes with timm and torchvision only; '' is needed")
    check_known(function, source.kwargs, shared=False)
    return functools.partial(function, pretrained=True) if pretrained else function


def _torchvision_builder(source: Source, pretrained: bool) -> Builder:
    check_torchvision_name(source.name)
    function = torchvision.models.get_model_builder(source.name)
    check_known(function, source.kwargs, shared=True)
    weights: dict[str, Any] = {"weights": "DEFAULT" if pretrained else None}
    if not pretrained and "weights_backbone" in inspect.signature(function).parameters:
        weights["weights_backbone"] = None  # torchvision's own default is a download
    return functools.partial(torchvision.models.get_model, source.name, **weights)


def _call(builder: Builder, kwargs: dict[str, Any]) -> nn.Module:
    try:
        return builder(**kwargs)
    except (TypeError, AttributeError):
        as_tuples = {key: _tuples(value) for key, value in kwargs.items()}
        if as_tuples == kwargs:
            raise
        return builder(**as_tuples)  # some builders take nothing else, and JSON knows only lists


def _tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def build_on_meta(source: Source, *, budget: Budget | None = None) -> nn.Module:
    """The model's structure without weights; on the CPU where its constructor needs values."""
    try:
        with torch.device("meta"):
            return build(source, budget=budget)
    except BudgetError:
        raise
    except SourceError as error:
        if isinstance(error.__cause__, MemoryError):
            raise
        return meta_copy(build(source, budget=budget))


def rebuild(source: Source, transforms: Iterable[Transform], budget: Budget, *, values: bool = False) -> nn.Module:
    """Build a source's model and carry out transforms on it, for what a network of the wanted size may cost.

    Args:
        values: build on the CPU, for a network that holds values which no state dict has; else on the meta device.

    Raises:
        SurgeryError: it cannot be built or changed, or costs more.
    """
    model = build(source, budget=budget) if values else build_on_meta(source, budget=budget)
    with budget.counting():
        apply(model, _affordable(model, transforms, budget))
    return model


def _affordable(model: nn.Module, transforms: Iterable[Transform], budget: Budget) -> Iterator[Transform]:
    """The transforms, one by one; before each, what it costs besides calls of operators is taken off the budget."""
    for transform in transforms:
        budget.spend(CALL + transform.work(model))
        yield transform


def find_source(
    model: nn.Module,
    stated: Source | None = None,
    input_size: InputSize | None = None,
    budget: Budget | None = None,
) -> Source:
    """How ``model`` was made: as given, as remembered, or inferred; checked by rebuilding it on the meta device.

    Args:
        budget: what rebuilding may cost; default: what :func:`surgery.load` allows for such a model.

    Raises:
        SourceError: nothing that can be inferred gives this network; names the first difference.
    """
    remembered = getattr(model, MEMORY, None)
    candidates = [stated] if stated else [remembered] if remembered else []
    candidates += [] if stated else [Source(*guess) for guess in guesses(model)]
    if not candidates:
        raise SourceError(
            f"how this {type(model).__name__} was made is not known: pass source='timm/NAME' or 'torchvision/NAME' "
            "with kwargs={...}, or the name of a builder made known by surgery.register_builder"
        )
    comparison = _Comparison(
        model, input_size or input_size_of(model), budget or Budget.of(model.state_dict().values())
    )
    differences: dict[str, None] = {}
    for candidate in candidates:
        difference = comparison.difference(candidate)
        if not difference:
            return candidate
        differences[f"{candidate}: {difference}"] = None
    shown = "; ".join(list(differences)[:2])
    raise SourceError(
        f"rebuilding gives another network ({shown}). Pass source= and the kwargs={{...}} it was made with"
    )


class _Comparison:
    """Compares a model with what sources and its history give."""

    def __init__(self, model: nn.Module, input_size: InputSize | None, budget: Budget) -> None:
        self.model, self.input_size, self.budget = model, input_size, budget
        self.shapes = _shapes(model)

    @functools.cached_property
    def recorded(self) -> ModelGraph:
        return record(self.model, self.input_size)

    def difference(self, source: Source) -> str:
        """The first difference between the model and what a source gives, or ""."""
        values = self.recorded.needs_values
        budget = self.budget.again()
        try:
            rebuilt = rebuild(source, history(self.model), budget, values=values)
        except SurgeryError as error:
            return str(error)
        shapes = _shapes(rebuilt)
        for name in [*self.shapes, *shapes]:
            if self.shapes.get(name) != shapes.get(name):
                return f"{name!r} has shape {shapes.get(name)}, the model's {self.shapes.get(name)}"
        first = _first_difference(record(rebuilt, self.input_size), self.recorded)
        return first and _first_difference(
            record(rebuilt, self.input_size), record(_without_caches(self.model, rebuilt), self.input_size)
        )


def _first_difference(rebuilt: ModelGraph, recorded: ModelGraph) -> str:
    for one, two in zip_longest(_signature(rebuilt), _signature(recorded)):
        if one != two:
            return f"it computes {one}, the model {two}"
    return ""


def _without_caches(model: nn.Module, rebuilt: nn.Module) -> nn.Module:
    """A copy of the model with those tensors as a new one has them that no state dict holds and a forward replaces.

    They are caches of what was computed for the last image (ConViT's indices): with another shape, or none at first.
    """
    copy, kept = meta_copy(model), model.state_dict()
    for name, module in rebuilt.named_modules():
        own = copy.get_submodule(name)
        for key, fresh in [*module.named_buffers(recurse=False), *vars(module).items()]:
            cached = getattr(own, key, None)
            is_saved = f"{name}.{key}".lstrip(".") in kept
            if isinstance(cached, Tensor) and not is_saved and getattr(fresh, "shape", None) != cached.shape:
                setattr(own, key, fresh)
    return copy


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _signature(graph: ModelGraph) -> list[str]:
    """One line per recorded operation; what does nothing in eval mode (dropout, drop path) is left out.

    A norm that is synchronised in training is the same in eval mode; a list and a tuple mean the same to a module.
    """
    lines = []
    for node in graph:
        if node.meta.get("kind") in (None, "identity", "attribute"):
            continue
        name = node.meta.get("module")
        what = f"{name}: {_shown(graph.modules[name])}" if name else f"{node.meta['owner']}: {_call_text(node)}"
        lines.append(f"{what} → {node.meta['shape']}")
    return lines


def _shown(module: nn.Module) -> str:
    text = repr(module)
    for special, plain in _SAME:
        text = text.replace(special, plain)
    return "\n".join(sorted(text.splitlines()))  # a synchronised norm lists what it holds in another order


_SAME = (
    ("SyncBatchNormAct(", "BatchNorm("),
    ("SyncBatchNorm(", "BatchNorm("),
    ("BatchNormAct2d(", "BatchNorm("),
    ("BatchNorm1d(", "BatchNorm("),
    ("BatchNorm2d(", "BatchNorm("),
    ("BatchNorm3d(", "BatchNorm("),
    ("[", "("),
    ("]", ")"),
)


def _call_text(node: Any) -> str:
    plain = [str(arg) for arg in node.args if isinstance(arg, int | float | str | bool)]
    plain += [f"{key}={value}" for key, value in node.kwargs.items() if isinstance(value, int | float | str | bool)]
    return f"{getattr(node.target, '__name__', node.target)}({', '.join(plain)})"
