"""Label maps: images whose pixels are class numbers; the pairs of them below folders, and their colours."""

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from surgery.core.atomic_file import write_atomically
from surgery.vision.image_files import images_below, look_into

UNLABELLED = 255  # in label maps in memory, and in Cityscapes' files: a pixel that is neither learnt nor judged


@dataclass(frozen=True)
class Labelling:
    """How a file's values become classes.

    Attributes:
        classes: how many there are: 0, 1, …
        ignore: a value for pixels without a class, besides 255.
        renumbered: class (or 255) of each value, where values are not classes themselves.
    """

    classes: int
    ignore: int | None = None
    renumbered: Mapping[int, int] | None = None

    def read(self, path: str | Path) -> Tensor:
        """The file as uint8 (H, W): classes, and 255 where there is none.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is no image of one channel, or holds a value that stands for no class.
        """
        values, mode = look_into(path, lambda image: (np.array(image), image.mode))
        if values.ndim != 2 or not np.issubdtype(values.dtype, np.integer):
            raise ValueError(f"{str(path)!r} is {mode}: a label map has one channel, of class numbers (mode L, P or I)")
        return torch.from_numpy(self._table(path, values)[values])

    def _table(self, path: str | Path, values: np.ndarray) -> np.ndarray:
        """The class of every value up to 255, after a look at those that occur."""
        class_of_value = self.renumbered if self.renumbered is not None else {n: n for n in range(self.classes)}
        unlabelled = {UNLABELLED} | ({self.ignore} if self.ignore is not None else set())
        foreign = sorted(set(np.unique(values).tolist()) - set(class_of_value) - unlabelled)
        if foreign:
            unlabelled_values = " and ".join(str(value) for value in sorted(unlabelled))
            raise ValueError(
                f"{str(path)!r} holds the value {foreign[0]}: one of the {self.classes} classes "
                f"0 to {self.classes - 1}, or {unlabelled_values} for pixels without a class, is needed"
            )
        table = np.full(256, UNLABELLED, np.uint8)
        for value, label in class_of_value.items():
            if 0 <= value < 256 and value not in unlabelled:
                table[value] = label
        return table


def pairs_below(folder: Path, kinds: tuple[str, str] = ("images", "masks")) -> list[tuple[Path, Path]]:
    """Images ``folder/images/NAME.*`` with their label maps ``folder/masks/NAME.*``, sorted by name.

    Args:
        kinds: names of the two folders.

    Raises:
        FileNotFoundError: a folder is missing or empty, or an image has no label map; names it.
    """
    parts = []
    for part in kinds:
        if not (folder / part).is_dir():
            raise FileNotFoundError(
                f"there is no folder {str(folder / part)!r}; {kinds[0]}/NAME.* and {kinds[1]}/NAME.* are needed"
            )
        parts.append({path.stem: path for path in images_below(folder / part)})
    images, masks = parts
    lonely = sorted(set(images) ^ set(masks))
    if lonely:
        raise FileNotFoundError(
            f"{str(folder)!r}: {lonely[0]!r} is not both in {kinds[0]} and in {kinds[1]} ({len(lonely)} such)"
        )
    return [(path, masks[stem]) for stem, path in sorted(images.items())]


def palette(colours: Sequence[str], classes: int) -> list[str]:
    """As given (``#rrggbb``), or PASCAL VOC's for its classes: bits of the number, spread over the channels."""
    return list(colours) if colours else [_voc_colour(number + 1) for number in range(classes)]


def _voc_colour(number: int) -> str:
    channels = [0, 0, 0]
    for shift in range(7, -1, -1):
        for channel in range(3):
            channels[channel] |= (number >> channel & 1) << shift
        number >>= 3
    return "#{:02x}{:02x}{:02x}".format(*channels)


def write_label_map(path: Path, labels: Tensor, colours: Sequence[str]) -> None:
    """A PNG with a palette: class numbers as they are, shown in their colours.

    Args:
        labels: uint8 (H, W).
        colours: ``#rrggbb`` of each class.
    """
    image = Image.fromarray(labels.cpu().numpy())
    image.putpalette(bytes(_channels(colours)))
    content = io.BytesIO()
    image.save(content, format="PNG", optimize=True)
    write_atomically(path, content.getvalue())


def _channels(colours: Sequence[str]) -> Iterator[int]:
    for colour in colours:
        yield from bytes.fromhex(colour.removeprefix("#"))
