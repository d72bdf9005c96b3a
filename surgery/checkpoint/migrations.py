"""Manifests of earlier schemas, rewritten step by step into today's, before their values are checked."""

from collections.abc import Callable
from typing import Any

from surgery.planning.registry import discover
from surgery.transforms.edit_migrations import transforms_of_edit

_KEYS = ("schema", "source", "edits", "aliases", "versions")


def migrated(content: dict[str, Any], schema: int) -> dict[str, Any]:
    """A manifest of an earlier schema as one of ``schema``.

    Raises:
        ValueError: it holds what its schema did not.
    """
    while content["schema"] < schema:
        content = _STEPS[content["schema"]](content)
    return content


def _from_1(content: dict[str, Any]) -> dict[str, Any]:
    """Schema 1 had ``edits`` by methods with arguments; schema 2 has ``transforms`` with a type and a version."""
    if not set(_KEYS) <= set(content) <= {*_KEYS, "preprocessing"}:
        raise ValueError(f"of schema 1 has {', '.join(_KEYS)} and may have preprocessing; found {list(content)!r:.200}")
    edits = content["edits"]
    if not isinstance(edits, list):
        raise ValueError(f"edits: it is {edits!r:.80}; a list of edits is needed")
    discover()  # methods register what rewrites their edits
    transforms: list[dict[str, Any]] = []
    for index, edit in enumerate(edits):
        try:
            transforms += transforms_of_edit(edit)
        except ValueError as error:
            raise ValueError(f"edits: [{index}]: {error}") from error
    return {name: value for name, value in content.items() if name != "edits"} | {
        "schema": 2,
        "transforms": transforms,
    }


_STEPS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {1: _from_1}
