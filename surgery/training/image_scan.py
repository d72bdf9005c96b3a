"""Images that cannot be read, found before a training meets them."""

import copy
import hashlib
import itertools
import json
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from surgery.atomic_file import write_atomically
from surgery.image_files import check_header, look_into
from surgery.training.data_set import DataSet
from surgery.training.recipe import DataSettings, RecipeError
from surgery.training.stopping import leave_signals_to_parent

HEADERS_S = 60.0  # longer than that a job's start does not look at headers
SAMPLE = 100
SHOWN = 3
DECODED = "readable.json"
Unreadable = list[tuple[int, str]]  # index and what is wrong, which names the file
PARTS = ("train", "test")


class UnreadableImagesError(ValueError):
    """Some of a data set's images cannot be read; names the first of them."""


def readable(data: DataSet, settings: DataSettings, accelerator: Accelerator, output: Path) -> DataSet:
    """``data`` as a job may use it: what can be known early of its files is known.

    The headers of all files are read, if that takes less than a minute. With ``data.skip_unreadable`` every file is
    decoded instead, once (the outcome is kept in ``output``), and those that cannot be are left out.

    Raises:
        UnreadableImagesError: files are damaged (with ``skip_unreadable``: more than half of a part).
        RecipeError: ``skip_unreadable`` for a data set that is not of image files in folders.
    """
    files = {part: _files(getattr(data, part)) for part in PARTS}
    if settings.skip_unreadable:
        known = {part: some for part, some in files.items() if some is not None}
        if not known and hasattr(data.train, "pixels"):  # decoded when they were opened
            return data
        if len(known) != len(files):
            raise RecipeError(
                f"data.skip_unreadable=true: not for data.name={settings.name}; only for images in folders, "
                "each of which is a file"
            )
        return _without(data, _decoded(known, settings, accelerator, output), known, accelerator.print)
    found = {part: _headers(some) for part, some in files.items() if some} if accelerator.is_main_process else {}
    (found,) = broadcast_object_list([found])
    for part, unreadable in found.items():
        if unreadable:
            raise _error(part, [reason for _, reason in unreadable], len(files[part] or ()))
    return data


def check_data(data: DataSet, settings: DataSettings, say: Callable[[str], None]) -> int:
    """Decode every image, and label map, of both parts; says which cannot be used and why, and returns their number."""
    count = 0
    for part in PARTS:
        images = getattr(data, part)
        total, before = len(images), count
        for _, reason in _each(_Items(images), range(total), settings.workers, f"checking {part}"):
            tqdm.write(reason)
            count += 1
        say(f"{part}: {total} images, {count - before or 'none'} of them unreadable")
    return count


def _files(images: Any) -> Sequence[tuple[Path | str, ...]] | None:
    """The files of each image (and its label map); None where they are not files in folders."""
    if hasattr(images, "pairs"):  # LabelledImages
        return images.pairs
    if hasattr(images, "chosen"):  # a part of a folder
        samples = images.images.samples
        return [(samples[index][0],) for index in images.chosen]
    if hasattr(images, "samples"):  # ImageFolder
        return [(path,) for path, _ in images.samples]
    return None


def _headers(files: Sequence[tuple[Path | str, ...]]) -> Unreadable:
    """Files whose header is damaged; of the first ones only, where all would take too long."""
    begun = time.monotonic()
    found = [*_wrong(check_header, enumerate(files[:SAMPLE]))]
    expected = (time.monotonic() - begun) / min(SAMPLE, len(files)) * len(files)
    if expected > HEADERS_S:
        tqdm.write(f"headers of {len(files)} images not read: {expected / 60:.0f} minutes; --check-data reads all")
        return found
    rest = itertools.islice(enumerate(files), SAMPLE, None)
    bar = tqdm(rest, "reading headers", max(0, len(files) - SAMPLE), leave=False, unit="image", delay=1)
    return [*found, *_wrong(check_header, bar)]


def _wrong(
    look: Callable[[Path | str], object], files: Iterable[tuple[int, tuple[Path | str, ...]]]
) -> Iterable[tuple[int, str]]:
    for index, some in files:
        reason = _reason(lambda some=some: [look(path) for path in some])  # type: ignore[misc]
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
    """What is wrong with each item of a data set, or nothing."""

    images: Any

    def __getitem__(self, index: int) -> str:
        return _reason(lambda: self.images[index])


@dataclass
class _Decoded(Dataset):
    """What is wrong with the files of each image, or nothing."""

    files: Sequence[tuple[Path | str, ...]]

    def __getitem__(self, index: int) -> str:
        return _reason(lambda: [look_into(path, lambda image: image.load()) for path in self.files[index]])


def _each(checked: Dataset, indices: Sequence[int], workers: int, title: str) -> Iterable[tuple[int, str]]:
    """Those that are wrong of some items, read by ``workers`` processes, with a bar."""
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
    files: dict[str, Sequence[tuple[Path | str, ...]]], settings: DataSettings, accelerator: Accelerator, output: Path
) -> dict[str, Unreadable]:
    """Files that cannot be decoded; from an earlier run's list where the files are the same."""
    path, stamp = output / DECODED, _stamp(files)
    known = json.loads(path.read_text()) if accelerator.is_main_process and path.exists() else {}
    (known,) = broadcast_object_list([known])
    if known.get("files") == stamp:
        return {part: [(index, reason) for index, reason in known["unreadable"][part]] for part in files}
    found = {}
    for part, some in files.items():
        mine = range(accelerator.process_index, len(some), accelerator.num_processes)
        found[part] = sorted(gather_object([*_each(_Decoded(some), mine, settings.workers, f"decoding {part}")]))
    if accelerator.is_main_process:
        write_atomically(path, json.dumps({"files": stamp, "unreadable": found}, indent=1).encode())
    return found


def _stamp(files: dict[str, Sequence[tuple[Path | str, ...]]]) -> str:
    """A digest of all names, sizes and times of change."""
    digest = hashlib.sha256()
    for part, some in files.items():
        for path in itertools.chain.from_iterable(some):
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


def _without(
    data: DataSet,
    found: dict[str, Unreadable],
    files: dict[str, Sequence[tuple[Path | str, ...]]],
    say: Callable[[str], None],
) -> DataSet:
    kept: dict[str, Any] = {}
    for part, unreadable in found.items():
        refuse_or_leave_out(part, [reason for _, reason in unreadable], len(files[part]), True, say)
        kept[part] = _part_without(getattr(data, part), {index for index, _ in unreadable})
    return replace(data, **kept)


def _part_without(images: Any, left_out: set[int]) -> Dataset:
    part = copy.copy(images)
    for name in ("pairs", "chosen", "samples"):
        if hasattr(part, name):
            setattr(part, name, [item for index, item in enumerate(getattr(part, name)) if index not in left_out])
            break
    if hasattr(part, "samples"):
        part.imgs, part.targets = part.samples, [label for _, label in part.samples]
    return part


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
