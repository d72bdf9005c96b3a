"""All keys of recipes as a Markdown table, made from their declarations:  python -m surgery.training.recipe_keys"""

import dataclasses
from typing import Any

import yaml

from surgery.training.recipe import Recipe
from surgery.training.recipe_errors import accepted, annotation_of, listed_at


def keys_table() -> str:
    """One row for each key: name, default, what is accepted, meaning. ``baseline`` and ``finetune`` have the same."""
    rows = ["| key | default | accepted | |", "|---|---|---|---|"]
    for group, cls in _groups():
        if group == "baseline":
            continue
        title = "baseline, finetune" if group == "finetune" else group
        rows += [f"| **{title}** | | | |"] if title else []
        rows += [_row(f"{group}." if group else "", name, declared) for name, declared in _keys(cls)]
    return "\n".join(rows) + "\n"


def _groups() -> list[tuple[str, Any]]:
    """Groups of keys with their names, that of a whole recipe first."""
    fields: dict[str, Any] = Recipe.__pydantic_fields__  # type: ignore[attr-defined]
    inner = [(name, declared.annotation) for name, declared in fields.items() if _is_group(declared)]
    return [("", Recipe), *inner]


def _keys(cls: Any) -> list[tuple[str, Any]]:
    return [(name, declared) for name, declared in cls.__pydantic_fields__.items() if not _is_group(declared)]


def _is_group(declared: Any) -> bool:
    return dataclasses.is_dataclass(declared.annotation)


def _row(prefix: str, name: str, declared: Any) -> str:
    annotation = annotation_of(declared)
    source = listed_at(annotation)
    takes = f"a name of `{source}`" if source else accepted(annotation)
    cells = [
        f"`{name if prefix == 'finetune.' else prefix + name}`",
        f"`{_value(declared)}`",
        takes,
        declared.description,
    ]
    return f"| {' | '.join(cells)} |".replace("…|", "… |")


def _value(declared: Any) -> str:
    default = declared.get_default(call_default_factory=True)
    value = round(default, 4) if isinstance(default, float) else default
    return yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("\n").removesuffix("\n...")


if __name__ == "__main__":
    print(keys_table(), end="")
