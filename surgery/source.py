"""How a model is made again: a builder's name and its keyword arguments, never code."""

import difflib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

import timm
import torch
import torchvision
from torch import nn

from surgery.edit import apply, history
from surgery.errors import SourceError, SurgeryError, check_choice
from surgery.graph import ModelGraph, record
from surgery.graph.skeleton import meta_copy
from surgery.input_size import InputSize

Builder = Callable[..., nn.Module]
_BUILDERS: dict[str, Builder] = {}
MEMORY = "surgery_source"


@dataclass(frozen=True)
class Source:
    """A builder (``timm``, ``torchvision`` or a registered one), the model's name there, and JSON keyword arguments."""

    builder: str
    name: str = ""
    kwargs: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        try:
            same = json.loads(json.dumps(self.kwargs)) == self.kwargs
        except (TypeError, ValueError):
            same = False
        if not same:
            raise SourceError(
                f"kwargs={self.kwargs!r} cannot be written as JSON; register_builder a function that takes plain values"
            )

    def __str__(self) -> str:
        name = f"{self.builder}/{self.name}" if self.name else self.builder
        return f"{name} {self.kwargs}" if self.kwargs else name


def register_builder(name: str) -> Callable[[Builder], Builder]:
    """Decorator: let ``save`` and ``load`` rebuild models by calling a function with JSON keyword arguments.

    Raises:
        ValueError: the name is taken by another function, or holds a slash.
    """
    if "/" in name or name in ("timm", "torchvision", ""):
        raise ValueError(f"builder name {name!r}: a name without a slash, other than timm and torchvision, is needed")

    def register(function: Builder) -> Builder:
        known = _BUILDERS.get(name)
        if known is not None and known.__qualname__ != function.__qualname__:
            raise ValueError(f"builder {name!r} is registered already, by {known.__qualname__}")
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
        known = torchvision.models.list_models()
    else:
        builder, name = "timm", name if builder == "timm" else text
        known = timm.list_models()
    try:
        check_choice(f"{builder} model", name.split(".")[0], known)
    except ValueError:
        near = difflib.get_close_matches(name, known, 3)
        hint = f"; near are {', '.join(near)}" if near else ""
        raise SourceError(f"there is no model {text!r} in {builder} (which has {len(known)}){hint}") from None
    return Source(builder, name, kwargs or {})


def create(text: str, *, pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Make a model that remembers how: ``create("timm/resnet50", num_classes=10)``.

    Args:
        text: as for :func:`parse_source`.
        pretrained: load the builder's pretrained weights (a download).
        **kwargs: of the builder, JSON values.
    """
    source = parse_source(text, kwargs)
    model = build(source, pretrained=pretrained)
    setattr(model, MEMORY, source)
    return model


def build(source: Source, *, pretrained: bool = False) -> nn.Module:
    """Call the source's builder.

    Raises:
        SourceError: the builder is not registered here, or refuses the arguments.
    """
    try:
        if source.builder == "timm":
            return timm.create_model(source.name, pretrained=pretrained, **source.kwargs)
        if source.builder == "torchvision":
            return torchvision.models.get_model(source.name, weights="DEFAULT" if pretrained else None, **source.kwargs)
        function = _BUILDERS.get(source.builder)
        if function is None:
            known = ", ".join(["timm", "torchvision", *_BUILDERS])
            raise SourceError(
                f"builder {source.builder!r} is not registered here (known: {known}); import what registers it "
                "(on the command line: --import MODULE)"
            )
        return function(**source.kwargs, **({"pretrained": True} if pretrained else {}))
    except (TypeError, ValueError, RuntimeError) as error:
        raise SourceError(f"{source} cannot be built: {error}") from error


def build_on_meta(source: Source) -> nn.Module:
    """The model's structure without weights; on the CPU where its constructor needs values."""
    try:
        with torch.device("meta"):
            return build(source)
    except (SourceError, NotImplementedError):
        return meta_copy(build(source))


def find_source(model: nn.Module, given: Source | None = None, input_size: InputSize | None = None) -> Source:
    """How ``model`` was made: as given, as remembered, or inferred; checked by rebuilding it on the meta device.

    Raises:
        SourceError: nothing that can be inferred gives this network; names the first difference.
    """
    remembered = getattr(model, MEMORY, None)
    candidates = [given] if given else [*([remembered] if remembered else []), *_candidates(model)]
    if not candidates:
        raise SourceError(
            f"how this {type(model).__name__} was made is not known: pass source='timm/NAME' or 'torchvision/NAME' "
            "with kwargs={...}, or the name of a builder made known by surgery.register_builder"
        )
    wanted = _tensors(model)
    differences = []
    for candidate in candidates:
        difference = _difference(model, wanted, candidate, input_size)
        if not difference:
            return candidate
        differences.append(f"{candidate}: {difference}")
    shown = "; ".join(differences[:2])
    raise SourceError(
        f"rebuilding gives another network ({shown}). Pass source= and the kwargs={{...}} it was made with"
    )


def _candidates(model: nn.Module) -> Iterator[Source]:
    module = type(model).__module__
    config = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None) or {}
    if module.startswith("timm.") and isinstance(config, dict) and config.get("architecture"):
        for kwargs in _timm_kwargs(model):
            yield Source("timm", config["architecture"], kwargs)
    if module.startswith("torchvision.models"):
        kwargs = _torchvision_kwargs(model)
        for name in torchvision.models.list_models():
            builder = torchvision.models.get_model_builder(name)
            if builder.__module__ == module:
                yield Source("torchvision", name, kwargs)


def _timm_kwargs(model: nn.Module) -> Iterator[dict[str, Any]]:
    classes = getattr(model, "num_classes", None)
    kwargs: dict[str, Any] = {"num_classes": classes} if isinstance(classes, int) else {}
    yield kwargs
    first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    if first is not None and first.in_channels != 3:
        yield kwargs | {"in_chans": first.in_channels}


def _torchvision_kwargs(model: nn.Module) -> dict[str, Any]:
    kwargs: dict[str, Any] = {}
    linears = [m for m in model.modules() if isinstance(m, nn.Linear)]
    if linears:
        kwargs["num_classes"] = linears[-1].out_features
    if isinstance(getattr(model, "aux_logits", None), bool):
        kwargs |= {"aux_logits": model.aux_logits, "init_weights": False}
    if isinstance(getattr(model, "transform_input", None), bool):
        kwargs["transform_input"] = model.transform_input
    return kwargs


def _tensors(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _difference(
    model: nn.Module, wanted: dict[str, tuple[int, ...]], source: Source, input_size: InputSize | None
) -> str:
    """The first difference between a model and what its source and history give, or ""."""
    recorded = record(model, input_size)
    make = build if recorded.needs_values else build_on_meta
    try:
        rebuilt = apply(make(source), history(model))
    except SurgeryError as error:
        return str(error)
    found = _tensors(rebuilt)
    for name in [*wanted, *found]:
        if wanted.get(name) != found.get(name):
            return f"{name!r} has shape {found.get(name)}, the model's {wanted.get(name)}"
    for one, two in zip_longest(_signature(record(rebuilt, input_size)), _signature(recorded)):
        if one != two:
            return f"it computes {one}, the model {two}"
    return ""


def _signature(graph: ModelGraph) -> list[str]:
    """One line per recorded operation; what does nothing in eval mode (dropout, drop path) is left out."""
    lines = []
    for node in graph:
        if node.meta.get("kind") in (None, "identity", "attribute"):
            continue
        name = node.meta.get("module")
        what = f"{name}: {graph.modules[name]!r}" if name else f"{node.meta['owner']}: {_call(node)}"
        lines.append(f"{what} → {node.meta['shape']}")
    return lines


def _call(node: Any) -> str:
    plain = [str(arg) for arg in node.args if isinstance(arg, int | float | str | bool)]
    plain += [f"{key}={value}" for key, value in node.kwargs.items() if isinstance(value, int | float | str | bool)]
    return f"{getattr(node.target, '__name__', node.target)}({', '.join(plain)})"
