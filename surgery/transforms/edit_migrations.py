"""How edits of manifests of schema 1, which were named after methods, are written as transforms.

The file that made a kind of edit knows its form; here it registers what rewrites it. Methods made after schema 1 have
none.
"""

from collections.abc import Callable, Iterator
from typing import Any

from surgery.core.errors import is_whole
from surgery.core.registering import check_name_free

Json = dict[str, Any]
Rewrite = Callable[[Json, Json], Iterator[Json]]
_EDIT_KEYS = {"method": str, "site": str, "role": str, "channels": list, "arguments": dict, "note": str}
_REWRITES: dict[str, Rewrite] = {}


def migrates_edit(method: str) -> Callable[[Rewrite], Rewrite]:
    """Decorator: let a function rewrite the edits of a method of schema 1.

    It gets the edit, whose keys and their types have been checked, and a copy of its arguments; it yields transforms
    in the form of a manifest of schema 2, and raises ValueError on arguments that there were not.

    Raises:
        ValueError: the name is taken by another function.
    """

    def register(function: Rewrite) -> Rewrite:
        check_name_free(f"edit {method!r} of schema 1", function, _REWRITES.get(method))
        _REWRITES[method] = function
        return function

    return register


def transforms_of_edit(edit: Any) -> list[Json]:
    """The transforms that an edit of schema 1 stands for, in the form of schema 2.

    Raises:
        ValueError: it is no edit, or none of a registered method.
    """
    if not isinstance(edit, dict) or set(edit) != set(_EDIT_KEYS):
        raise ValueError(f"an edit has the keys {', '.join(_EDIT_KEYS)}; found {edit!r:.200}")
    for key, kind in _EDIT_KEYS.items():
        if not isinstance(edit[key], kind):
            raise ValueError(f"edit {key}={edit[key]!r:.80}: {kind.__name__} is needed")
    channels = edit["channels"]
    if len(channels) != 2 or not all(is_whole(width, 0) for width in channels):  # zeros where there is no convolution
        raise ValueError(f"edit channels={channels!r:.80}: two whole numbers, [in, out], are needed")
    rewrite = _REWRITES.get(edit["method"])
    if rewrite is None:
        raise ValueError(f"method {edit['method']!r:.80}: of schema 1, one of {', '.join(sorted(_REWRITES))} is needed")
    return list(rewrite(edit, dict(edit["arguments"])))


def only_argument(method: str, arguments: Json, name: str, accepted: str = "") -> Any:
    """The one argument there may be; ``accepted`` says what else there might have been."""
    if set(arguments) != {name}:
        raise ValueError(f"edit of {method!r} has the arguments {list(arguments)!r:.200}; it takes {accepted or name}")
    return arguments[name]


def pooled_head(arguments: Json) -> Json:
    """The transform of an edit that pools the head."""
    if arguments["pool_head"] is not True:
        raise ValueError(f"edit argument pool_head={arguments['pool_head']!r:.80}: true is needed")
    return {"type": "pooled_head@1"}


def inserted(edit: Json, squeezed: Any, options: Json) -> Json:
    """The transform of an edit that inserts a layer of the method's name."""
    site = {"module": edit["site"], "layer": edit["method"], "channels": edit["channels"]}
    return {"type": "insert_before@1", **site, "squeezed": squeezed, "options": options}


@migrates_edit("narrow")
def _narrow(edit: Json, arguments: Json) -> Iterator[Json]:
    yield {"type": "narrow@1", "widths": only_argument("narrow", arguments, "widths")}


@migrates_edit("match")
def _match(edit: Json, arguments: Json) -> Iterator[Json]:
    inside = edit["note"].startswith("channels reordered inside")
    yield {"type": "reorder@1", "order": only_argument("match", arguments, "order"), "inside": inside}
