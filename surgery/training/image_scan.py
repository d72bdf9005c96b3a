"""Images that cannot be read, found before a training meets them."""

import hashlib
import itertools
import json
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from surgery.core.atomic_file import write_atomically
from surgery.training.image_dataset import ImageDataset, ImageFiles
from surgery.training.json_file import read_json
from surgery.training.main_process import on_main
from surgery.training.recipe import DataSettings, RecipeError
from surgery.training.stopping import leave_signals_to_parent
from surgery.vision.image_files import check_header, look_into

HEADERS_S = 60.0  # longer than that a job's start does not look at headers
SAMPLE = 100
SHOWN = 3
DECODED = "readable.json"
Files = Sequence[tuple[Path | str, ...]]
Unreadable = list[tuple[int, str]]  # index and what is wrong, which names the file
PARTS = ("train", "test")


class UnreadableImagesError(ValueError):
    """Some of a dataset's images cannot be read; names the first of them."""


def check_headers(data: ImageDataset, accelerator: Accelerator) -> None:
    """Read the headers of all image files, if that takes less than a minute; else of the first ones.

    Raises:
        UnreadableImagesError: some are damaged.
    """
    files = {part: images.files for part in PARTS if isinstance(images := getattr(data, part), ImageFiles)}
    unreadable = on_main(accelerator, lambda: {part: _headers(paths) for part, paths in files.items() if paths})
    for part, damaged in unreadable.items():
        if damaged:
            raise _error(part, [reason for _, reason in damaged], len(files[part]))


def leave_out_unreadable(
    data: ImageDataset, settings: DataSettings, accelerator: Accelerator, output: Path
) -> ImageDataset:
    """``data`` without the files that cannot be decoded.

    Every file is decoded, once: the outcome is kept in ``output``.

    Raises:
        UnreadableImagesError: that is more than half of a part.
        RecipeError: the dataset is not of image files in folders.
    """
    parts = _file_parts(data, settings)
    files = {part: images.files for part, images in parts.items()}
    if not any(files.values()):  # decoded when they were opened
        return data
    unreadable, readable = _decoded(files, settings, accelerator, output), dict[str, Any]()
    for part, images in parts.items():
        reasons = dict(unreadable[part])
        refuse_or_leave_out(part, list(reasons.values()), len(files[part]), True, accelerator.print)
        readable[part] = images.without(reasons)
    return replace(data, **readable)


def readable_sample(data: ImageDataset, settings: DataSettings, count: int) -> ImageDataset:
    """``count`` items of each part, or as many as there are, that can be decoded, drawn once and for all.

    Raises:
        UnreadableImagesError: more than half of a part cannot be.
        RecipeError: the dataset is not of image files in folders.
    """
    sample: dict[str, Any] = {
        part: _part_sample(part, images, count) for part, images in _file_parts(data, settings).items()
    }
    return replace(data, **sample)


def _part_sample(part: str, images: ImageFiles, count: int) -> Dataset:
    decoded, chosen, reasons = _Decoded(images.files), set[int](), []
    total = len(decoded.files)
    if not total:  # all is in memory
        return cast(Dataset, images)
    for index in np.random.default_rng(0).permutation(total).tolist():
        reason = decoded[index]
        if reason:
            reasons.append(reason)
        else:
            chosen.add(index)
        if 2 * len(reasons) > total:
            raise _error(part, reasons, total)
        if len(chosen) == count:
            break
    return images.without(set(range(total)) - chosen)


def check_data(data: ImageDataset, settings: DataSettings, say: Callable[[str], None]) -> int:
    """Decode every image, and label map, of both parts; says which cannot be used and why, and returns their number."""
    count = 0
    for part in PARTS:
        images = getattr(data, part)
        total, before = len(images), count
        for _, reason in _unreadable(_Items(images), range(total), settings.workers, f"checking {part}"):
            tqdm.write(reason)
            count += 1
        say(f"{part}: {total} images, {count - before or 'none'} of them unreadable")
    return count


def _file_parts(data: ImageDataset, settings: DataSettings) -> dict[str, ImageFiles]:
    parts = {part: getattr(data, part) for part in PARTS}
    if not all(isinstance(images, ImageFiles) for images in parts.values()):
        raise RecipeError(
            f"data.skip_unreadable=true: not for data.name={settings.name}; only for images in folders, "
            "each of which is a file"
        )
    return parts


def _headers(files: Files) -> Unreadable:
    """Files whose header is damaged; of the first ones only, where all would take too long."""
    begun = time.monotonic()
    damaged = [*_damaged(check_header, enumerate(files[:SAMPLE]))]
    expected = (time.monotonic() - begun) / min(SAMPLE, len(files)) * len(files)
    if expected > HEADERS_S:
        tqdm.write(f"headers of {len(files)} images not read: {expected / 60:.0f} minutes; --check-data reads all")
        return damaged
    remaining = itertools.islice(enumerate(files), SAMPLE, None)
    bar = tqdm(remaining, "reading headers", max(0, len(files) - SAMPLE), leave=False, unit="image", delay=1)
    return [*damaged, *_damaged(check_header, bar)]


def _damaged(
    look: Callable[[Path | str], object], files: Iterable[tuple[int, tuple[Path | str, ...]]]
) -> Iterable[tuple[int, str]]:
    for index, paths in files:
        reason = _reason(lambda paths=paths: [look(path) for path in paths])  # type: ignore[misc]
        if reason:
            yield index, reason


def _reason(read: Callable[[], object]) -> str:
    try:
        read()
    except (ValueError, OSError) as error:
        return str(error)
    return ""


@dataclass
class _Items(Dataset):
    """What is wrong with each item of a dataset, or nothing."""

    images: Any

    def __getitem__(self, index: int) -> str:
        return _reason(lambda: self.images[index])


@dataclass
class _Decoded(Dataset):
    """What is wrong with the files of each image, or nothing."""

    files: Files

    def __getitem__(self, index: int) -> str:
        return _reason(lambda: [look_into(path, lambda image: image.load()) for path in self.files[index]])


def _unreadable(checked: Dataset, indices: Sequence[int], workers: int, title: str) -> Iterable[tuple[int, str]]:
    """Those of some items that cannot be used, read by ``workers`` processes, with a bar."""
    loader: Any = DataLoader(
        checked,
        batch_size=None,
        sampler=cast(Any, indices),
        num_workers=workers,
        worker_init_fn=leave_signals_to_parent,
    )
    bar = tqdm(loader, title, len(indices), leave=False, unit="image", mininterval=0.5)
    return ((index, reason) for index, reason in zip(indices, bar, strict=True) if reason)


def _decoded(
    files: dict[str, Files], settings: DataSettings, accelerator: Accelerator, output: Path
) -> dict[str, Unreadable]:
    """Files that cannot be decoded; from an earlier run's list where the files are the same."""
    path = output / DECODED
    stamp = on_main(accelerator, lambda: _stamp(files))
    listed = on_main(accelerator, lambda: _listed(path, stamp, files))
    if listed is not None:
        return listed
    unreadable = {}
    for part, paths in files.items():
        own = range(accelerator.process_index, len(paths), accelerator.num_processes)
        unreadable[part] = sorted(
            gather_object([*_unreadable(_Decoded(paths), own, settings.workers, f"decoding {part}")])
        )
    content = json.dumps({"files": stamp, "unreadable": unreadable}, indent=1).encode()
    on_main(accelerator, lambda: write_atomically(path, content))
    return unreadable


def _listed(path: Path, stamp: str, files: dict[str, Files]) -> dict[str, Unreadable] | None:
    """What an earlier run found in the same files; None where it was of others, or its list is damaged."""
    if not path.exists():
        return None
    try:
        content = read_json(path, ("files", "unreadable"))
        listed = {part: [(int(index), str(reason)) for index, reason in content["unreadable"][part]] for part in files}
    except (ValueError, TypeError, LookupError):  # the list is made again
        return None
    return listed if content["files"] == stamp else None


def _stamp(files: dict[str, Files]) -> str:
    """A digest of all names, sizes and times of change."""
    digest = hashlib.sha256()
    for part, paths in files.items():
        for path in itertools.chain.from_iterable(paths):
            status = os.stat(path)
            digest.update(f"{part}\0{path}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def refuse_or_leave_out(
    part: str, unreadable: Sequence[str], total: int, leave_out: bool, say: Callable[[str], None]
) -> None:
    """Raise UnreadableImagesError for what cannot be read, or say how many are left out where that is asked for."""
    if not unreadable:
        return
    if not leave_out or 2 * len(unreadable) > total:
        raise _error(part, unreadable, total)
    say(f"{part}: {len(unreadable)} of {total} images left out, which cannot be read: {_shown(unreadable)}")


def _error(part: str, unreadable: Sequence[str], total: int) -> UnreadableImagesError:
    remedy = "--check-data lists all that cannot be read, data.skip_unreadable=true leaves them out"
    if 2 * len(unreadable) > total:
        remedy = "that is more than half; the folder or the files are not what they should be"
    return UnreadableImagesError(
        f"{len(unreadable)} of {total} images in {part} cannot be read: {_shown(unreadable)} ({remedy})"
    )


def _shown(unreadable: Sequence[str]) -> str:
    more = f" … and {len(unreadable) - SHOWN} more" if len(unreadable) > SHOWN else ""
    return "; ".join(unreadable[:SHOWN]) + more
