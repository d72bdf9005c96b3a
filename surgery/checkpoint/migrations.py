"""Manifests of earlier schemas, rewritten step by step into today's, before their values are checked."""

from collections.abc import Callable, Iterator
from typing import Any

from surgery.core.errors import is_whole

_KEYS = ("schema", "source", "edits", "aliases", "versions")
_EDIT_KEYS = {"method": str, "site": str, "role": str, "channels": list, "arguments": dict, "note": str}
_PIX_OPTIONS = ("tau", "fusion", "operator", "activation", "predictor_norm", "norm", "grouping")


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
    transforms: list[dict[str, Any]] = []
    for index, edit in enumerate(edits):
        try:
            transforms += _transforms_of(edit)
        except ValueError as error:
            raise ValueError(f"edits: [{index}]: {error}") from error
    return {name: value for name, value in content.items() if name != "edits"} | {
        "schema": 2,
        "transforms": transforms,
    }


def _transforms_of(edit: Any) -> Iterator[dict[str, Any]]:
    if not isinstance(edit, dict) or set(edit) != set(_EDIT_KEYS):
        raise ValueError(f"an edit has the keys {', '.join(_EDIT_KEYS)}; found {edit!r:.200}")
    for key, kind in _EDIT_KEYS.items():
        if not isinstance(edit[key], kind):
            raise ValueError(f"edit {key}={edit[key]!r:.80}: {kind.__name__} is needed")
    channels = edit["channels"]
    if len(channels) != 2 or not all(is_whole(width, 0) for width in channels):  # zeros where there is no convolution
        raise ValueError(f"edit channels={channels!r:.80}: two whole numbers, [in, out], are needed")
    convert = _EDITS.get(edit["method"])
    if convert is None:
        raise ValueError(f"method {edit['method']!r:.80}: of schema 1, one of {', '.join(_EDITS)} is needed")
    yield from convert(edit, dict(edit["arguments"]))


def _narrow(edit: dict[str, Any], arguments: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield {"type": "narrow@1", "widths": _only("narrow", arguments, "widths")}


def _match(edit: dict[str, Any], arguments: dict[str, Any]) -> Iterator[dict[str, Any]]:
    inside = edit["note"].startswith("channels reordered inside")
    yield {"type": "reorder@1", "order": _only("match", arguments, "order"), "inside": inside}


def _squeeze_conv(edit: dict[str, Any], arguments: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if set(arguments) == {"pool_head"}:
        yield _pooled_head(arguments)
    else:
        yield _inserted(edit, _only("squeeze-conv", arguments, "squeezed", "squeezed, or pool_head"), {})


def _pix(edit: dict[str, Any], arguments: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if set(arguments) == {"pool_head"}:
        yield _pooled_head(arguments)
        return
    options = {name: arguments.pop(name) for name in _PIX_OPTIONS if name in arguments}
    if set(arguments) == {"squeezed"}:
        yield _inserted(edit, arguments["squeezed"], options)
        return
    if set(arguments) != {"identity", "erase"}:
        raise ValueError(
            f"edit of 'pix' has the arguments {list(edit['arguments'])!r:.200}; it takes squeezed; or identity, erase; "
            "or pool_head"
        )
    site = {"module": edit["site"], "layer": "pix", "channels": edit["channels"], "options": options}
    yield {"type": "replace@1", **site}
    if arguments["identity"] != []:
        yield {"type": "drop@1", "modules": arguments["identity"]}
    if arguments["erase"] != []:
        erased = arguments["erase"]
        if not isinstance(erased, list) or len(erased) != 3:
            raise ValueError(f"edit argument erase={erased!r:.80}: [] or [block, conv, [[n, name], …]] is needed")
        yield {"type": "erase_calls@1", **dict(zip(("block", "conv", "calls"), erased, strict=True))}


def _pooled_head(arguments: dict[str, Any]) -> dict[str, Any]:
    if arguments["pool_head"] is not True:
        raise ValueError(f"edit argument pool_head={arguments['pool_head']!r:.80}: true is needed")
    return {"type": "pooled_head@1"}


def _inserted(edit: dict[str, Any], squeezed: Any, options: dict[str, Any]) -> dict[str, Any]:
    site = {"module": edit["site"], "layer": edit["method"], "channels": edit["channels"]}
    return {"type": "insert_before@1", **site, "squeezed": squeezed, "options": options}


def _only(method: str, arguments: dict[str, Any], name: str, accepted: str = "") -> Any:
    """The one argument there may be; ``accepted`` says what else there might have been."""
    if set(arguments) != {name}:
        raise ValueError(f"edit of {method!r} has the arguments {list(arguments)!r:.200}; it takes {accepted or name}")
    return arguments[name]


_EDITS: dict[str, Callable[[dict[str, Any], dict[str, Any]], Iterator[dict[str, Any]]]] = {
    "narrow": _narrow,
    "match": _match,
    "pix": _pix,
    "squeeze-conv": _squeeze_conv,
}
_STEPS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {1: _from_1}
