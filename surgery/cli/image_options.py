"""The images that a method looks at, from a folder."""

import argparse
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from surgery.calibration.folder import folder_batches
from surgery.planning.registry import method_named, methods
from surgery.vision.classification import labelled_batches

COUNT = 1024


class BatchesWhenAsked:
    """Batches that are read, or made, when they are first asked for, and then kept."""

    def __init__(self, make: Callable[[], Iterable[Any]]) -> None:
        self._make = make

    @cached_property
    def _batches(self) -> list[Any]:
        return list(self._make())

    def __iter__(self) -> Iterator[Any]:
        yield from self._batches


def add_image_options(command: argparse.ArgumentParser) -> None:
    """``--images`` and ``--image-count``."""
    labelled = [name for name, method in sorted(methods().items()) if method.evidence == "labelled images"]
    group = command.add_argument_group("images", "for methods that look at some ('methods' lists what each needs)")
    group.add_argument(
        "--images",
        metavar="FOLDER",
        help="the images below this folder, prepared as the model takes them; labels are not needed, but for "
        f"{', '.join(labelled)}: CLASS/* (or train/CLASS/*)",
    )
    group.add_argument("--image-count", type=int, default=COUNT, metavar="N", help=f"at most (default: {COUNT})")


def method_images(args: argparse.Namespace, model: nn.Module) -> BatchesWhenAsked | None:
    """What the method looks at; None where nothing is given, and nothing beside ``--calibrate`` is needed.

    The images of ``--calibrate`` serve too; for a method that needs labels their folders are the classes.

    Raises:
        ValueError: the method needs images, and none are given.
        FileNotFoundError: there is no such folder.
    """
    needed = method_named(args.method).evidence
    labelled = needed == "labelled images"
    calibrated, synthetic = getattr(args, "calibrate", None), getattr(args, "synthetic", False)
    folder = args.images or (calibrated if labelled else None)
    if folder is None:
        if labelled or (needed == "images" and not (calibrated or synthetic)):
            layout = " with CLASS/*" if labelled else ""
            raise ValueError(f"method {args.method!r} needs {needed}: --images FOLDER{layout} is needed")
        return None
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"--images {folder}: there is no such folder")
    if args.image_count < 1:
        raise ValueError(f"--image-count {args.image_count}: at least 1 is needed")
    read = labelled_batches if labelled else folder_batches
    return BatchesWhenAsked(lambda: read(folder, model, args.image_count, args.input_size))
