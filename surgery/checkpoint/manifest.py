"""The manifest of a file: text to checked values, before anything is built from them. ``docs/format.md`` specifies it.

Every key has a reader in ``_READERS``; whatever is wrong becomes one CheckpointError that names the key, its value and
what is accepted.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from surgery.checkpoint.migrations import migrated
from surgery.checkpoint.source import Source
from surgery.core.errors import CheckpointError, SourceError
from surgery.planning.registry import discover
from surgery.transforms.transform import Transform, transform_from_json
from surgery.vision.preprocessing import Preprocessing

SCHEMA = 2
LONGEST = 2**21  # characters: names of 20,000 classes, and
LONGEST_PER_TENSOR = 4_096  # for each tensor, what its module may have of transforms and widths


@dataclass(frozen=True)
class Manifest:
    """What a file says of itself, checked; ``content`` is its JSON, in today's schema."""

    content: dict[str, Any]
    source: Source
    transforms: tuple[Transform, ...]
    aliases: dict[str, str]
    versions: dict[str, str]
    preprocessing: Preprocessing | None = None


def parse_manifest(text: str, tensors: int = 0) -> Manifest:
    """Read a manifest's text.

    Args:
        tensors: how many there are beside it; a manifest is not longer than so many need.

    Raises:
        CheckpointError: it is not JSON, of a later schema, too long, or holds what a manifest cannot.
    """
    longest = LONGEST + LONGEST_PER_TENSOR * tensors
    if len(text) > longest:
        raise CheckpointError(f"a manifest of {len(text)} characters; at most {longest} fit {tensors} tensors")
    content = _json(text)
    schema = _checked_schema(content)
    try:
        content = migrated(content, SCHEMA)
    except ValueError as error:
        raise CheckpointError(f"manifest {error!s:.1000}") from error
    required = {"schema", *_READERS} - {"preprocessing"}
    if not required <= set(content) or not set(content) <= required | {"preprocessing"}:
        raise CheckpointError(
            f"a manifest of schema {SCHEMA} has {', '.join(['schema', *_READERS])} (the last may be absent); found "
            f"{list(content)!r:.200}"
        )
    values = {}
    origin = "" if schema == SCHEMA else f" (rewritten from schema {schema})"
    for key, read in _READERS.items():
        if key in content:
            try:
                values[key] = read(content[key])
            except (ValueError, SourceError) as error:
                raise CheckpointError(f"manifest {key}{origin}: {error!s:.1000}") from error
    return Manifest(content, **values)


def _json(text: str) -> Any:
    try:
        return json.loads(
            text, object_pairs_hook=_without_duplicates, parse_constant=_not_a_number, parse_float=_finite_number
        )
    except RecursionError:
        raise CheckpointError("it is damaged: its manifest is nested too deeply") from None
    except ValueError as error:
        raise CheckpointError(f"it is damaged: its manifest is not JSON ({error})") from error


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name, value in pairs:
        if name in result:
            raise ValueError(f"the key {name!r:.80} is there twice")
        result[name] = value
    return result


def _not_a_number(text: str) -> float:
    raise ValueError(f"{text} is no number of JSON")


def _finite_number(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _not_a_number(text)


def _checked_schema(content: Any) -> int:
    if not isinstance(content, dict):
        raise CheckpointError(f"manifest {content!r:.80}: an object of schema {SCHEMA} is needed")
    schema = content.get("schema")
    if type(schema) is int and schema > SCHEMA:
        raise CheckpointError(f"schema {schema:.6g}; this version reads up to {SCHEMA}: upgrade surgery")
    if type(schema) is not int or schema < 1:
        raise CheckpointError(f"manifest schema={schema!r:.80}: a number from 1 to {SCHEMA} is needed")
    return schema


def _source(value: Any) -> Source:
    _of(value, dict, "an object of builder, name and kwargs")
    if set(value) != {"builder", "name", "kwargs"}:
        raise ValueError(f"builder, name and kwargs are needed; found {list(value)!r:.200}")
    return Source(**value)


def _transforms(value: Any) -> tuple[Transform, ...]:
    _of(value, list, "a list of transforms")
    discover()
    transforms = []
    for index, item in enumerate(value):
        try:
            transforms.append(transform_from_json(item))
        except ValueError as error:
            raise ValueError(f"[{index}]: {error}") from error
    return tuple(transforms)


def _texts(value: Any) -> dict[str, str]:
    _of(value, dict, "an object of texts")
    for key, text in value.items():
        if not isinstance(text, str):
            raise ValueError(f"{key!r:.80} is {text!r:.80}; a text is needed")
    return value


def _preprocessing(value: Any) -> Preprocessing:
    _of(value, dict, "an object")
    try:
        return Preprocessing.from_json(value)
    except TypeError as error:
        raise ValueError(str(error)) from error


def _of(value: Any, kind: type, needed: str) -> None:
    if not isinstance(value, kind):
        raise ValueError(f"it is {value!r:.80}; {needed} ({kind.__name__}) is needed")


_READERS: dict[str, Callable[[Any], Any]] = {
    "source": _source,
    "transforms": _transforms,
    "aliases": _texts,
    "versions": _texts,
    "preprocessing": _preprocessing,
}
