"""What a change of a model is: typed, versioned, by name, and all that a file's manifest holds of it.

A transform is a pure function of (model, its own fields): no data, no randomness that outlives the loading of weights.
That is what lets ``load`` rebuild a network from the manifest on the meta device. What depends on weights or images,
such as which channels stay, is its ``choice``, which is made once and never stored.
"""

import abc
import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, TypeVar

from torch import nn

Choice = Any
Json = Any
CALL = 10_000  # units of work that a call of an operator counts (some 50 µs); checkpoint.build_budget has the limits
PER_INDEX = 16  # units for an index in a Python list
UNSTORED = {"stored": False}
_TRANSFORMS: dict[str, type["Transform"]] = {}


class Transform(abc.ABC):
    """One primitive change of a model. Subclasses are frozen dataclasses of JSON values, registered by
    :func:`transform`; their ``__post_init__`` raises ValueError on values that cannot be.

    Fields with the metadata ``UNSTORED`` belong to the choice, not to the file.
    """

    type: ClassVar[str]
    version: ClassVar[int]
    rewrites: ClassVar[bool] = False  # it may fail half-way, on what no plan can know before it is tried

    @abc.abstractmethod
    def apply(self, model: nn.Module, choice: Choice = None) -> None:
        """Carry it out in place.

        Args:
            choice: what :meth:`choose` gave; without one the tensors are then to be loaded.

        Raises:
            SurgeryError: the model is not one that it fits.
        """

    def choose(self, model: nn.Module) -> Choice:
        """What depends on the weights that a model has, before it is applied; None where nothing does."""
        return None

    def changed(self) -> tuple[str, ...]:
        """Names of the modules that compute something else from now on."""
        return ()

    def added(self) -> tuple[str, ...]:
        """Names of the modules that the original has not: replacements, and what is inserted."""
        return ()

    def removed(self) -> tuple[str, ...]:
        """Names of the modules that nn.Identity took the place of."""
        return ()

    def resized(self) -> tuple[str, ...]:
        """Names of the modules whose parameters have another shape."""
        return ()

    def kept_outputs(self, choice: Choice) -> dict[str, list[int]]:
        """Of the layers that lose outputs, the indices of those that stay."""
        return {}

    def work(self, model: nn.Module) -> int:
        """What carrying it out costs besides calls of operators, in units (``CALL``)."""
        return 0

    def to_json(self) -> dict[str, Json]:
        """``{"type": "name@version", field: value, …}``."""
        values = {field.name: _plain(getattr(self, field.name)) for field in _stored(type(self))}
        return {"type": f"{self.type}@{self.version}", **values}

    def as_stored(self) -> "Transform":
        """The transform as a file would give it back."""
        own: Any = self
        return dataclasses.replace(own, **{f.name: f.default for f in dataclasses.fields(own) if not _is_stored(f)})

    def __hash__(self) -> int:
        return hash(json.dumps(self.to_json(), sort_keys=True))


T = TypeVar("T", bound=type[Transform])


def transform(name: str, version: int = 1) -> Callable[[T], T]:
    """Class decorator: make a frozen dataclass known as the transform ``name@version``.

    Raises:
        ValueError: the name is taken at that version.
    """

    def register(cls: T) -> T:
        key = f"{name}@{version}"
        if key in _TRANSFORMS:
            raise ValueError(f"transform {key!r} is registered already, by {_TRANSFORMS[key].__qualname__}")
        cls.type, cls.version = name, version
        cls.__hash__ = Transform.__hash__  # type: ignore[method-assign]
        _TRANSFORMS[key] = cls
        return cls

    return register


def transform_from_json(value: Json) -> Transform:
    """The transform that a manifest describes.

    Raises:
        ValueError: of a type that is not registered, with other keys than its own, or with values that cannot be.
    """
    if not isinstance(value, Mapping) or not isinstance(value.get("type"), str):
        raise ValueError(f"{value!r:.80}: an object with a type, such as 'narrow@1', is needed")
    cls = _TRANSFORMS.get(value["type"])
    if cls is None:
        raise ValueError(f"type {value['type']!r:.80}: one of {', '.join(sorted(_TRANSFORMS))} is needed")
    fields = {field.name: field for field in _stored(cls)}
    arguments = {name: argument for name, argument in value.items() if name != "type"}
    optional = {name for name, field in fields.items() if _has_default(field)}
    if not set(fields) - optional <= set(arguments) <= set(fields):
        raise ValueError(f"{value['type']} has the keys {list(arguments)!r:.200}; it takes {', '.join(fields)}")
    return cls(**arguments)


def _stored(cls: type[Transform]) -> list["dataclasses.Field[Any]"]:
    return [field for field in dataclasses.fields(cls) if _is_stored(field)]  # type: ignore[arg-type]


def _is_stored(field: "dataclasses.Field[Any]") -> bool:
    return bool(field.metadata.get("stored", True))


def _has_default(field: "dataclasses.Field[Any]") -> bool:
    return field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING


def _plain(value: Any) -> Json:
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value
