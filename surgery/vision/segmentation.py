"""A network that labels pixels: of whole images or in windows, its mean IoU over a folder, its label maps."""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import pad
from tqdm import tqdm

from surgery.core.checked_model import first_weight, output_for_one_image
from surgery.core.eval_mode import eval_mode
from surgery.core.extras import check_extra
from surgery.core.table import table
from surgery.vision.class_folders import held_out_part
from surgery.vision.image_files import open_image
from surgery.vision.label_maps import UNLABELLED, Labelling, pairs_below, palette, write_label_map
from surgery.vision.preprocessing import preprocessing_of


@dataclass(frozen=True)
class View:
    """How a network looks at an image.

    Attributes:
        window: side in pixels of the windows that cover it, or 0 for the whole image at once.
        overlap: share of a window that the next one covers again.
        flip: whether the mirrored image is looked at too, and the mean taken.
    """

    window: int = 0
    overlap: float = 1 / 3
    flip: bool = False

    def __post_init__(self) -> None:
        if self.window < 0 or not 0 <= self.overlap < 1:
            raise ValueError(
                f"window={self.window}, overlap={self.overlap}: a side in pixels, or 0, and a share from 0 to below 1 "
                "are needed"
            )


WHOLE = View()


def segment(model: nn.Module, images: Tensor, view: View = WHOLE) -> Tensor:
    """Probabilities of the classes for every pixel.

    Args:
        model: in eval mode; gives logits (N, classes, H, W).
        images: (N, C, H, W), normalised.

    Returns:
        float32 (N, classes, H, W), the mean over windows and mirror images.
    """
    probabilities = _windowed(model, images, view)
    if view.flip:
        probabilities = (probabilities + _windowed(model, images.flip(3), view).flip(3)) / 2
    return probabilities


def _windowed(model: nn.Module, images: Tensor, view: View) -> Tensor:
    side = view.window
    if not side:
        return model(images).float().softmax(1)
    height, width = images.shape[-2:]
    padded = pad(images, (0, max(0, side - width), 0, max(0, side - height)))  # by zeros, the mean of all images
    rows, columns = (list(_starts(length, side, view.overlap)) for length in padded.shape[-2:])
    total, visits = None, torch.zeros(padded.shape[-2:], device=images.device)
    for top in rows:
        for left in columns:
            window = (..., slice(top, top + side), slice(left, left + side))
            part = model(padded[window].contiguous()).float().softmax(1)
            total = part.new_zeros(*part.shape[:2], *padded.shape[-2:]) if total is None else total
            total[window] += part
            visits[window] += 1
    assert total is not None  # there is at least one window
    return (total / visits)[..., :height, :width]


def _starts(length: int, side: int, overlap: float) -> Iterator[int]:
    """Where windows begin: evenly, the last one at the end."""
    step = max(1, int(side * (1 - overlap)))
    yield from range(0, length - side, step)
    yield length - side


def confusion(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Pixels by true class (rows) and likeliest class (columns): int64 (classes, classes).

    Args:
        probabilities: (N, classes, H, W).
        labels: integers (N, H, W); 255 is not counted.
    """
    check_extra("train", "a mean IoU", ("torchmetrics",))
    from torchmetrics.functional.classification import multiclass_confusion_matrix

    return multiclass_confusion_matrix(
        probabilities.argmax(1), labels.long(), probabilities.shape[1], ignore_index=UNLABELLED
    )


def class_ious(counts: Tensor) -> Tensor:
    """Intersection over union of each class in percent, from :func:`confusion`; NaN for what nobody saw."""
    counts = counts.double()
    right = counts.diagonal()
    return 100 * right / (counts.sum(0) + counts.sum(1) - right)


def mean_iou(counts: Tensor) -> float:
    """Mean over the classes that occur, in percent, as Cityscapes' and PASCAL VOC's mIoU."""
    return class_ious(counts).nanmean().item()


@dataclass(frozen=True)
class IoU:
    """Mean IoU in percent and that of each class over ``images`` images, at ``images_per_second`` with loading."""

    mean: float
    classes: dict[str, float]
    images: int
    images_per_second: float

    def __str__(self) -> str:
        rows = [(name, f"{value:.2f}") for name, value in self.classes.items()]
        total = f"mIoU {self.mean:.2f} % of {self.images} images ({self.images_per_second:.2g} images/s)"
        return f"{table(('class', 'IoU (%)'), rows, right=(1,))}\n{total}"


def map_channels(model: nn.Module) -> int:
    """Channels of the map of logits that a model gives for an image, of the image's size; 0 where it gives no map."""
    size = preprocessing_of(model).size
    output = output_for_one_image(model, size)
    is_map = isinstance(output, Tensor) and output.ndim == 4 and output.shape[-2:] == size[1:]
    return output.shape[1] if is_map else 0


def segments(model: nn.Module) -> bool:
    """Whether a model gives a map of several classes' logits for an image of its own size."""
    return map_channels(model) > 1


def evaluate(model: nn.Module, folder: str | Path, view: View = WHOLE, *, progress: bool = True) -> IoU:
    """Mean IoU on ``folder/{images,masks}/NAME.*`` (or on ``folder/val`` or ``folder/test``, laid out so).

    Raises:
        FileNotFoundError: a folder or the label map of an image is missing.
        ValueError: a file that is no image, a label that is no class, or sizes that differ.
    """
    preprocessing, weight = preprocessing_of(model), first_weight(model)
    root = held_out_part(folder) or Path(folder)
    pairs, transform = pairs_below(root), preprocessing.whole_image()
    total, begin = torch.zeros((), dtype=torch.int64, device=weight.device), time.perf_counter()
    with eval_mode(model), torch.inference_mode():
        for image_path, mask_path in tqdm(pairs, "evaluating", unit="image", leave=False, disable=not progress):
            image = transform(open_image(image_path, preprocessing.size[0]))[None].to(weight)
            probabilities = segment(model, image, view)
            labels = Labelling(probabilities.shape[1], preprocessing.ignore).read(mask_path)
            check_same_size(image_path, image.shape[-2:], labels)
            total = total + confusion(probabilities, labels[None].to(weight.device))
    if preprocessing.classes and len(preprocessing.classes) != len(total):
        raise ValueError(f"the model gives {len(total)} classes and was saved with {len(preprocessing.classes)} names")
    names = preprocessing.classes or tuple(str(number) for number in range(len(total)))
    ious = dict(zip(names, class_ious(total).tolist(), strict=True))
    return IoU(mean_iou(total), ious, len(pairs), len(pairs) / (time.perf_counter() - begin))


def check_same_size(path: Path, size: Sequence[int], labels: Tensor) -> None:
    """Raise ValueError, naming the image, unless its size (H, W) is that of its label map, or mask (H, W)."""
    if tuple(size) != tuple(labels.shape):
        sizes = [f"{width}×{height}" for height, width in (size, labels.shape)]
        raise ValueError(f"{str(path)!r} is {sizes[0]}, its mask {sizes[1]}")


def predict(model: nn.Module, paths: Sequence[str | Path], out: str | Path, view: View = WHOLE) -> list[Path]:
    """Write ``out/STEM.mask.png`` for each image: a PNG of class numbers with a palette of their colours.

    Raises:
        FileNotFoundError, ValueError: a file that does not exist, or is no image; two that would have the same mask.
        OSError: a mask cannot be written.
    """
    preprocessing, weight = preprocessing_of(model), first_weight(model)
    targets = targets_in(Path(out), paths, "mask")
    transform = preprocessing.whole_image()
    with eval_mode(model), torch.inference_mode():
        for path, target in tqdm(targets.items(), "predicting", unit="image", leave=False, disable=len(targets) < 3):
            probabilities = segment(model, transform(open_image(path, preprocessing.size[0]))[None].to(weight), view)[0]
            write_label_map(
                target, probabilities.argmax(0).to(torch.uint8), palette(preprocessing.colours, len(probabilities))
            )
    return list(targets.values())


def targets_in(out: Path, paths: Iterable[str | Path], kind: str) -> dict[Path, Path]:
    """For each image ``out/STEM.KIND.png``.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: two images would have the same file.
    """
    if not out.is_dir():
        raise FileNotFoundError(f"there is no folder {str(out)!r} to write masks to")
    targets: dict[Path, Path] = {}
    for path in map(Path, paths):
        target = out / f"{path.stem}.{kind}.png"
        if target in targets.values():
            raise ValueError(f"two images are called {path.stem!r}; their masks would be the same file {str(target)!r}")
        targets[path] = target
    return targets


def label_table(model: nn.Module, masks: Sequence[Path]) -> str:
    """What :func:`predict` wrote, as text: a line for each mask with its classes, the commonest first."""
    names = preprocessing_of(model).classes
    rows = []
    for path in masks:
        with Image.open(path) as mask:
            counts = torch.bincount(torch.from_numpy(np.array(mask)).flatten())
        shares = [(names[i] if names else str(i), n / counts.sum()) for i, n in enumerate(counts.tolist()) if n]
        best = sorted(shares, key=lambda item: -item[1])[:5]
        rows.append((str(path), ", ".join(f"{name} {100 * share:.1f} %" for name, share in best)))
    return table(("mask", "of its pixels"), rows)
