"""Edits that older files hold of this method (schema 1), as transforms."""

from collections.abc import Iterator
from typing import Any

from surgery.transforms.edit_migrations import Json, inserted, migrates_edit, pooled_head

OPTIONS = ("tau", "fusion", "operator", "activation", "predictor_norm", "norm", "grouping")


@migrates_edit("pix")
def transforms_of(edit: Json, arguments: Json) -> Iterator[Json]:
    """A layer inserted, a convolution replaced with what went with it, or the head pooled."""
    if set(arguments) == {"pool_head"}:
        yield pooled_head(arguments)
        return
    options = {name: arguments.pop(name) for name in OPTIONS if name in arguments}
    if set(arguments) == {"squeezed"}:
        yield inserted(edit, arguments["squeezed"], options)
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
        yield _erased(arguments["erase"])


def _erased(calls: Any) -> Json:
    if not isinstance(calls, list) or len(calls) != 3:
        raise ValueError(f"edit argument erase={calls!r:.80}: [] or [block, conv, [[n, name], …]] is needed")
    return {"type": "erase_calls@1", **dict(zip(("block", "conv", "calls"), calls, strict=True))}
