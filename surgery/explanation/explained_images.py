"""The images that an explanation looks at, with the classes whose folders they lie in."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from surgery.vision.class_folders import held_out_part
from surgery.vision.image_files import images_below, open_image
from surgery.vision.preprocessing import Preprocessing


@dataclass(frozen=True)
class ExplainedImages:
    """Images as a network takes them.

    Attributes:
        files: their names.
        labels: name of the class of each, by its folder; "" where it lies in none.
        tensors: (N, C, H, W), normalised.
        pixels: (N, C, H, W), the same from 0 to 1.
    """

    files: tuple[str, ...]
    labels: tuple[str, ...]
    tensors: Tensor
    pixels: Tensor


def read_images(
    paths: Sequence[str | Path], preprocessing: Preprocessing, count: int, seed: int = 0
) -> ExplainedImages:
    """At most ``count`` images of files and folders, in turn from every class, drawn by ``seed``.

    A class is the folder that an image lies in, where the network has a class of that name; else the first one below a
    folder that was named (or below its ``val`` or ``test``).

    Raises:
        FileNotFoundError: a path that is not there, or a folder without an image.
        ValueError: no path, or a file that is no image.
    """
    if not paths:
        raise ValueError("images=[]: one or more image files, or folders of them, are needed")
    by_class: dict[str, list[str]] = {}
    for file, label in dict.fromkeys(chain.from_iterable(_labelled(Path(path), preprocessing) for path in paths)):
        by_class.setdefault(label, []).append(file)
    chosen = _drawn(by_class, count, random.Random(seed))
    transform = preprocessing.transform()
    bar = tqdm(chosen, "reading images", unit="image", leave=False, disable=len(chosen) < 8)
    tensors = torch.stack([transform(open_image(file, preprocessing.size[0])) for file, _ in bar])
    mean, std = (torch.tensor(values)[:, None, None] for values in (preprocessing.mean, preprocessing.std))
    files, labels = zip(*chosen, strict=True)
    return ExplainedImages(files, labels, tensors, (tensors * std + mean).clamp(0, 1))


def _labelled(path: Path, preprocessing: Preprocessing) -> list[tuple[str, str]]:
    """Image files, with the class of each."""
    if not path.exists():
        raise FileNotFoundError(f"{str(path)!r} does not exist: an image file, or a folder of them, is needed")
    root = (held_out_part(path) or path) if path.is_dir() else path.parent
    files = images_below(root) if path.is_dir() else [path]
    return [(str(file), _label(file, root, preprocessing.classes)) for file in files]


def _label(file: Path, root: Path, classes: Sequence[str]) -> str:
    own = file.resolve().parent.name
    return own if own in classes else "".join(file.relative_to(root).parts[:-1][:1])


def _drawn(by_class: dict[str, list[str]], count: int, draw: random.Random) -> list[tuple[str, str]]:
    """(file, class), one class after the other; of more classes than images some."""
    classes = sorted(draw.sample(sorted(by_class), min(count, len(by_class))))
    shuffled = [draw.sample(by_class[label], len(by_class[label])) for label in classes]
    turns = zip_longest(*([(file, label) for file in files] for files, label in zip(shuffled, classes, strict=True)))
    return [pair for pair in chain.from_iterable(turns) if pair is not None][:count]
