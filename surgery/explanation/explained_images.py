"""The images that an explanation looks at, with the classes whose folders they lie in."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from surgery.vision.image_files import images_below, open_image
from surgery.vision.preprocessing import Preprocessing


@dataclass(frozen=True)
class ExplainedImages:
    """Images as a network takes them.

    Attributes:
        files: their names.
        labels: name of the folder in which each lies, below a folder that was named; "" for a file that was named.
        tensors: (N, C, H, W).
    """

    files: tuple[str, ...]
    labels: tuple[str, ...]
    tensors: Tensor

    @property
    def classes(self) -> list[str]:
        """Names of the folders, sorted."""
        return sorted(set(self.labels) - {""})


def read_images(paths: Sequence[str | Path], preprocessing: Preprocessing, count: int) -> ExplainedImages:
    """At most ``count`` images of files and folders, in turn from every class.

    Raises:
        FileNotFoundError: a path that is not there, or a folder without an image.
        ValueError: no path, or a file that is no image.
    """
    if not paths:
        raise ValueError("images: one or more files or folders are needed")
    by_class: dict[str, list[str]] = {}
    for path in map(Path, paths):
        for file in images_below(path) if path.is_dir() else [path]:
            label = file.relative_to(path).parts[0] if path.is_dir() and file.parent != path else ""
            by_class.setdefault(label, []).append(str(file))
    turns = zip_longest(*([(file, label) for file in files] for label, files in by_class.items()))
    chosen = [pair for pair in chain.from_iterable(turns) if pair is not None][:count]
    transform = preprocessing.transform()
    images = [
        transform(open_image(file, preprocessing.size[0]))
        for file, _ in tqdm(chosen, "reading images", leave=False, disable=len(chosen) < 8)
    ]
    return ExplainedImages(tuple(f for f, _ in chosen), tuple(c for _, c in chosen), torch.stack(images))
