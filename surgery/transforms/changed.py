"""What surgery changed in a model, as its history of edits says: never asked of a module's class."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from surgery.transforms.edit import MATCH, NARROW, Edit, history


@dataclass(frozen=True)
class Changes:
    """Names of the modules that a history of edits changed and that are still there, each in the model's order.

    Attributes:
        replaced: another module stands in the place of the original's.
        inserted: modules that the original has not; each is in front of a layer, within what took that one's place.
        preceded: the layers that these are in front of.
        resized: narrower than in the original, on either side.
    """

    replaced: tuple[str, ...]
    inserted: tuple[str, ...]
    preceded: tuple[str, ...]
    resized: tuple[str, ...]

    @property
    def added(self) -> tuple[str, ...]:
        """Modules that the original has not, whole: of those within one another the outermost."""
        names = {*self.replaced, *self.inserted}
        return tuple(name for name in (*self.replaced, *self.inserted) if not _within(name, names))


def is_converted(model: nn.Module) -> bool:
    """Whether surgery changed the model's structure; an order of channels (``surgery.match``) is none."""
    return any(edit.method != MATCH for edit in history(model))


def changed_modules(model: nn.Module) -> tuple[str, ...]:
    """Names of the modules that were replaced, inserted before, or resized, in the order of the model."""
    changed = changes(model)
    names = {*changed.replaced, *changed.preceded, *changed.resized}
    return tuple(name for name, _ in model.named_modules(remove_duplicate=False) if name in names)


def changes(model: nn.Module) -> Changes:
    """What the model's history changed, by kind of change."""
    names: dict[str, set[str]] = {"replaced": set(), "inserted": set(), "preceded": set(), "resized": set()}
    for edit in history(model):
        for kind, name in _of_edit(edit):
            names[kind].add(name)
    present = [name for name, _ in model.named_modules(remove_duplicate=False)]
    return Changes(**{kind: tuple(name for name in present if name in some) for kind, some in names.items()})


def _of_edit(edit: Edit) -> Iterator[tuple[str, str]]:
    """(kind of change, module name) of all that an edit changes."""
    if edit.method == NARROW:
        yield from (("resized", name) for name in edit.arguments["widths"])
    elif edit.method != MATCH and edit.site:
        if "squeezed" in edit.arguments:
            yield from (("preceded", edit.site), ("inserted", f"{edit.site}.squeeze"))
        else:
            yield "replaced", edit.site


def _within(name: str, others: set[str]) -> bool:
    return any(name.rsplit(".", count)[0] in others for count in range(1, name.count(".") + 1))
