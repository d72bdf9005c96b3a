"""What a change of a model is: typed, versioned, by name, and all that a file's manifest holds of it.

A transform is a pure function of (model, its own fields): no data, no randomness that outlives the loading of weights.
That is what lets ``load`` rebuild a network from the manifest on the meta device. What depends on weights or images,
such as which channels stay, is its ``choice``, which is made once and never stored.
"""

import abc
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NoReturn, TypeVar

from torch import nn

from surgery.core.errors import described, is_whole
from surgery.core.registering import check_name_free, same_definition

Choice = Any
Json = Any
CALL = 10_000  # units of work that a call of an operator counts (some 50 µs); checkpoint.build_budget has the limits
PER_INDEX = 16  # units for an index in a Python list
UNSTORED = {"stored": False}
_TRANSFORMS: dict[str, type["Transform"]] = {}


class Transform(abc.ABC):
    """One primitive change of a model. Subclasses are frozen dataclasses of JSON values, registered by
    :func:`transform`; their ``__post_init__`` raises ValueError on values that cannot be. From a file a tuple comes as
    a list; ``__post_init__`` brings both to one form.

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
        """``{"type": "name@version", field: value, …}``; raises ValueError for a class that is not registered."""
        registered = _TRANSFORMS.get(f"{self.type}@{self.version}") if hasattr(self, "type") else None
        if registered is None or not same_definition(type(self), registered):
            raise ValueError(f"{type(self).__qualname__} is not registered (surgery.transforms.transform.transform)")
        values = {field.name: plain(getattr(self, field.name)) for field in _stored(type(self))}
        return {"type": f"{self.type}@{self.version}", **values}

    def as_stored(self) -> "Transform":
        """The transform as a file would give it back: itself where all of its fields are stored."""
        own: Any = self
        unstored = {field.name: _default(field) for field in dataclasses.fields(own) if not _is_stored(field)}
        return dataclasses.replace(own, **unstored) if unstored else self

    def __hash__(self) -> int:
        compared = [field.name for field in _stored(type(self)) if field.compare]
        return hash((type(self), _hashable([getattr(self, name) for name in compared])))


T = TypeVar("T", bound=type[Transform])


def transform(name: str, version: int = 1) -> Callable[[T], T]:
    """Class decorator: make a frozen dataclass known as the transform ``name@version``.

    A class for another version of the same name is registered beside it: files of both then load.

    Raises:
        ValueError: another class has the name at that version, it is none, or a field cannot be kept in a file.
        TypeError: the class is no frozen dataclass, or no :class:`Transform`.
    """
    if not isinstance(name, str) or not name or "@" in name or not is_whole(version, 1):
        raise ValueError(f"transform {name!r}, version {version!r}: a name without '@' and a number >= 1 are needed")

    def register(cls: T) -> T:
        key = f"{name}@{version}"
        _check_class(cls)
        earlier = _TRANSFORMS.get(key)
        check_name_free(f"transform {key!r}", cls, earlier, f", by {earlier.__qualname__}" if earlier else "")
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
    cls = _TRANSFORMS.get(value["type"]) or _unknown(value["type"])
    fields = {field.name: field for field in _stored(cls)}
    arguments = {name: argument for name, argument in value.items() if name != "type"}
    required = {name for name, field in fields.items() if not _has_default(field)}
    if not required <= set(arguments) <= set(fields):
        takes = ", ".join(fields) or "none"
        raise ValueError(f"{value['type']} has the keys {list(arguments)!r:.200}; besides type it takes {takes}")
    try:
        return cls(**arguments)
    except ValueError:
        raise
    except Exception as error:  # the checks of a class from elsewhere may fail in any way on what a file holds
        raise ValueError(f"{value['type']}: {described(error)}") from error


def _unknown(key: str) -> NoReturn:
    name, _, version = key.partition("@")
    versions = sorted(cls.version for cls in _TRANSFORMS.values() if cls.type == name)
    if versions and version.isdecimal() and len(version) < 10 and int(version) > versions[-1]:
        raise ValueError(f"type {key!r}: this version reads {name}@{versions[-1]}: upgrade what registers it")
    raise ValueError(
        f"type {key!r:.80} is not registered here (known: {', '.join(sorted(_TRANSFORMS))}); import what registers it "
        "(on the command line: --import MODULE)"
    )


def _check_class(cls: Any) -> None:
    """Raise unless files can hold instances of a class."""
    parameters = getattr(cls, "__dataclass_params__", None)
    if not isinstance(cls, type) or not issubclass(cls, Transform) or parameters is None or not parameters.frozen:
        raise TypeError(
            f"{cls!r:.80}: a subclass of Transform, with @dataclass(frozen=True) below @transform, is needed"
        )
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        if field.name in ("type", "version"):
            raise ValueError(f"{cls.__qualname__} has the field {field.name!r}, which is a name of every transform's")
        if not _is_stored(field) and not _has_default(field):
            raise ValueError(f"{cls.__qualname__}.{field.name} is not stored; it needs a default")


def _stored(cls: type[Transform]) -> list["dataclasses.Field[Any]"]:
    return [field for field in dataclasses.fields(cls) if _is_stored(field)]  # type: ignore[arg-type]


def _is_stored(field: "dataclasses.Field[Any]") -> bool:
    return bool(field.metadata.get("stored", True))


def _has_default(field: "dataclasses.Field[Any]") -> bool:
    return field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING


def _default(field: "dataclasses.Field[Any]") -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _hashable(value: Any) -> Any:
    """Equal for equal values, also where JSON writes them in another way (1, 1.0 and true)."""
    if isinstance(value, Mapping):
        return frozenset((name, _hashable(item)) for name, item in value.items())
    return tuple(map(_hashable, value)) if isinstance(value, tuple | list) else value


def plain(value: Any) -> Json:
    """A value as JSON has it: tuples are lists."""
    if isinstance(value, Mapping):
        return {name: plain(item) for name, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, tuple | list) else value
