"""What a dataset is to a recipe, and where its files are."""

import os
from collections.abc import Container, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from torch.utils.data import Dataset

from surgery.training.recipe import DataSettings, RecipeError

DATA_VARIABLE = "SURGERY_DATA"


@runtime_checkable
class ImageFiles(Protocol):
    """A part of a dataset whose items are files each: an image, or an image and its label map."""

    @property
    def files(self) -> Sequence[tuple[Path | str, ...]]:
        """The files of each item; none where all of them are in memory already."""
        ...

    def without(self, left_out: Container[int]) -> Dataset:
        """The same part without the items of these indices."""
        ...


@dataclass(frozen=True)
class ImageDataset:
    """Training and test images, (PIL, label) or (PIL, map), and the number of classes: 1 where maps are saliency masks.

    Attributes:
        names: of the classes, where they have some.
        colours: of the classes in label maps, where they have some: ``#rrggbb``.
    """

    train: Dataset
    test: Dataset
    classes: int
    names: tuple[str, ...] = ()
    colours: tuple[str, ...] = ()


def data_folder(settings: DataSettings, name: str, parts: Sequence[str]) -> Path:
    """The folder ``name`` below ``data.root`` (or SURGERY_DATA), or that folder itself, with ``parts`` in it.

    Raises:
        RecipeError: no folder is given, or it lacks a part; says how it should be laid out.
    """
    root = _root(settings)
    layout = f"{name}/{{{','.join(parts)}}}/…"
    if not root:
        raise RecipeError(
            f"data.name={name} is read from files: set data.root, or {DATA_VARIABLE}, to where {layout} is"
        )
    for folder in (Path(root) / name, Path(root)):
        if all((folder / part).is_dir() for part in parts):
            return folder
    source = "data.root" if settings.root else DATA_VARIABLE
    raise RecipeError(f"{source}={root}: there is no {layout} in it")


def _root(settings: DataSettings) -> str:
    """``data.root``, or else SURGERY_DATA, where ``~`` is the home folder too; nothing where neither is given."""
    return settings.root or os.path.expanduser(os.environ.get(DATA_VARIABLE, ""))


def data_root(settings: DataSettings) -> Path:
    """The folder ``data.root`` (or SURGERY_DATA); raises RecipeError where none is given, or it is none."""
    root = _root(settings)
    if not root:
        raise RecipeError(f"data.name={settings.name} is read from files: set data.root, or {DATA_VARIABLE}")
    if not Path(root).is_dir():
        raise RecipeError(f"{'data.root' if settings.root else DATA_VARIABLE}={root} is no folder")
    return Path(root)


def own_folder(settings: DataSettings, layout: str) -> Path:
    """The folder ``data.root`` of a dataset that is a user's own.

    SURGERY_DATA is no substitute: it holds other datasets, which would be taken for classes, or for images.

    Raises:
        RecipeError: it is not given, or no folder.
    """
    if settings.root and Path(settings.root).is_dir():
        return Path(settings.root)
    other = f" ({DATA_VARIABLE} is for named datasets)" if not settings.root and DATA_VARIABLE in os.environ else ""
    raise RecipeError(
        f"data.root={settings.root or 'null'}: with data.name={settings.name} a folder with {layout} is needed{other}"
    )
