"""Tar shards in the manner of WebDataset, read at random from local disk.

A streamed set, such as timm's reader of WebDataset shards, gives images in an order that depends on buffers and on the
number of workers, and cannot begin in the middle. The recipes go on at any step to the same bits and seed the
augmentation of every image by its index. So the headers of all tar files are read once, and images by their place.
"""

import io
import os
import tarfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image
from torch.utils.data import Dataset
from tqdm import tqdm

from surgery.training.image_dataset import ImageDataset, data_root
from surgery.training.recipe import DataSettings, RecipeError
from surgery.vision.class_folders import held_out_part
from surgery.vision.image_files import decode_image

SUFFIXES = ("jpg", "jpeg", "png", "webp")
LABEL_DIGITS = 9


class Shards(Dataset):
    """Images of tar files; ``samples`` has a row (tar file, offset, size, label) for each."""

    def __init__(self, tars: Sequence[Path], samples: np.ndarray) -> None:
        self.tars, self.samples = list(tars), samples
        self.transform: Callable[[Image.Image], object] | None = None
        self._reader = _Reader()

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[object, int]:
        tar, offset, size, label = self.samples[index].tolist()
        data = self._reader.read(self.tars[tar], offset, size)
        try:
            image = decode_image(io.BytesIO(data), "the image")
        except ValueError as error:
            raise ValueError(f"{self.member(index)}: {error}") from None
        return (image if self.transform is None else self.transform(image)), label

    def member(self, index: int) -> str:
        """The tar file and the name in it of an image; reads headers, for they are not kept."""
        path, offset = self.tars[self.samples[index, 0]], self.samples[index, 1]
        with tarfile.open(path, "r:") as tar:
            return next(
                (f"{path}: {member.name}" for member in tar if member.offset_data == offset), f"{path}: byte {offset}"
            )


class _Reader:
    """The tar file that was read last, open for this process alone: a fork would share its position."""

    def __init__(self) -> None:
        self._file: BinaryIO | None = None
        self._key: tuple[Path, int] | None = None

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return _Reader, ()

    def read(self, path: Path, offset: int, size: int) -> bytes:
        key = (path, os.getpid())
        if self._file is None or key != self._key:
            if self._file is not None:
                self._file.close()
            self._file, self._key = open(path, "rb"), key  # noqa: SIM115
        self._file.seek(offset)
        return self._file.read(size)


def shards(settings: DataSettings) -> ImageDataset:
    """Images in tar files: ``{train,val}/*.tar`` (or test) below ``data.root``, of NAME.jpg (png, webp) and NAME.cls.

    NAME.cls holds an integer from 0 as text, NAME ends before the first dot; other members are passed over. The number
    of classes is ``data.classes``, or else 1 + the largest label of the training images.
    """
    root = data_root(settings)
    test_folder = held_out_part(root)
    if test_folder is None or not (root / "train").is_dir():
        raise RecipeError(f"data.root={root}: there is no {{train,val}}/*.tar (or test in place of val) in it")
    train, test = (_index(root / part) for part in ("train", test_folder.name))
    classes = settings.classes or 1 + int(train.samples[:, 3].max())
    source = f"data.classes={classes}" if settings.classes else f"the largest in {root / 'train'} is {classes - 1}"
    for part in (train, test):
        largest = int(part.samples[:, 3].argmax())
        if part.samples[largest, 3] >= classes:
            raise RecipeError(
                f"{part.member(largest)} has label {part.samples[largest, 3]}, but {source}: data.classes is needed, "
                "larger than all labels"
            )
    return ImageDataset(train, test, classes)


def _index(folder: Path) -> Shards:
    tars = sorted(folder.glob("*.tar"))
    if not tars:
        raise RecipeError(f"{folder}: there is no *.tar (uncompressed) in it")
    bar = tqdm(tars, f"indexing {folder.name} shards", leave=False, unit="tar", mininterval=0.5)
    samples = [np.array([(number, *sample) for sample in _samples(path)], np.int64) for number, path in enumerate(bar)]
    samples = [rows for rows in samples if len(rows)]
    if not samples:
        raise RecipeError(f"{folder}/*.tar: there is no NAME.{{{','.join(SUFFIXES)}}} with NAME.cls in them")
    return Shards(tars, np.concatenate(samples))


def _samples(path: Path) -> list[tuple[int, int, int]]:
    """(offset, size, label) of the images of a tar file, in its order."""
    images: dict[str, tarfile.TarInfo] = {}
    labels: dict[str, int] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                key, suffix = _split(member.name)
                if not member.isfile() or suffix not in (*SUFFIXES, "cls"):
                    continue
                if key in (labels if suffix == "cls" else images):
                    raise RecipeError(f"{path}: {member.name} is a second image or label of {key}; one is needed")
                if suffix == "cls":
                    labels[key] = _label(path, tar, member)
                else:
                    images[key] = member
            _check_end(path, tar.offset)
    except (tarfile.TarError, OSError) as error:
        raise RecipeError(f"{path} is no whole, uncompressed tar file: {error}") from None
    _check_pairs(path, images, labels)
    return [(member.offset_data, member.size, labels[key]) for key, member in images.items()]


def _split(name: str) -> tuple[str, str]:
    folder, slash, file = name.rpartition("/")
    stem, _, suffix = file.partition(".")
    return folder + slash + stem, suffix.lower()


def _label(path: Path, tar: tarfile.TarFile, member: tarfile.TarInfo) -> int:
    file = tar.extractfile(member)
    text = file.read(64).strip() if file is not None else b""
    if not text.isdigit() or len(text) > LABEL_DIGITS:
        content = text.decode(errors="replace")
        raise RecipeError(f"{path}: {member.name} holds {content!r}: an integer is needed, at least 0")
    return int(text)


def _check_end(path: Path, end: int) -> None:
    """Raise ReadError unless a block of zeros ends the tar file, for a cut header looks like an end to tarfile."""
    with path.open("rb") as file:
        file.seek(end)
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError(f"it is cut, or damaged, at byte {end}")


def _check_pairs(path: Path, images: Iterable[str], labels: Iterable[str]) -> None:
    images, labels = set(images), set(labels)
    if images - labels:
        key = min(images - labels)
        raise RecipeError(f"{path}: the image {key} has no {key}.cls")
    if labels - images:
        key = min(labels - images)
        raise RecipeError(f"{path}: {key}.cls has no image {key}.{{{','.join(SUFFIXES)}}}")
