"""Images in one folder for each class."""

import copy
import os
from collections.abc import Callable, Container
from pathlib import Path
from typing import Any

from PIL import Image
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import is_image_file

from surgery.vision.image_files import is_hidden, open_image

TEST_PARTS = ("val", "test")


def held_out_part(folder: str | Path) -> Path | None:
    """The folder ``val``, else ``test``, in a dataset's folder; None where there is neither."""
    return next((part for name in TEST_PARTS if (part := Path(folder) / name).is_dir()), None)


class ClassFolders(ImageFolder):
    """torchvision's ImageFolder without what programs leave beside a user's images.

    ``__MACOSX``, ``.ipynb_checkpoints`` and other hidden folders are no classes, and hidden files no images.

    Raises:
        FileNotFoundError: there are no such folders, or one of them holds no image.
    """

    def __init__(
        self,
        root: str | Path,
        transform: Callable[[Image.Image], Any] | None = None,
        loader: Callable[[str], Any] = open_image,
    ) -> None:
        folder = Path(root).expanduser()

        def is_image(path: str) -> bool:
            return is_image_file(path) and not is_hidden(path, folder)

        super().__init__(folder, transform, loader=loader, is_valid_file=is_image)

    def find_classes(self, directory: str | Path) -> tuple[list[str], dict[str, int]]:
        """Names of the class folders, sorted, and their numbers."""
        folders = [entry.name for entry in os.scandir(directory) if entry.is_dir()]
        names = sorted(name for name in folders if not is_hidden(name, "."))
        if not names:
            raise FileNotFoundError(f"there is no folder of a class in {directory}")
        return names, {name: number for number, name in enumerate(names)}

    @property
    def files(self) -> list[tuple[str]]:
        """The file of each image."""
        return [(path,) for path, _ in self.samples]

    def without(self, left_out: Container[int]) -> "ClassFolders":
        """The same folders without the images of these indices."""
        readable = copy.copy(self)
        readable.samples = [sample for index, sample in enumerate(self.samples) if index not in left_out]
        readable.imgs, readable.targets = readable.samples, [label for _, label in readable.samples]
        return readable
