"""Networks that find salient objects: their masks in folders, their maps of images, judged and written."""

import io
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import interpolate
from tqdm import tqdm

from surgery.core.atomic_file import write_atomically
from surgery.core.checked_model import first_weight
from surgery.core.eval_mode import eval_mode
from surgery.core.table import table
from surgery.vision.class_folders import held_out_part
from surgery.vision.image_files import look_into, open_image
from surgery.vision.label_maps import pairs_below
from surgery.vision.preprocessing import preprocessing_of
from surgery.vision.saliency import SaliencyFigures, figures, image_scores
from surgery.vision.segmentation import check_same_size, map_channels, targets_in

NEARLY_GREY = 16  # most by which channels of a grey image differ that was saved as a colour JPEG


def read_mask(path: str | Path) -> Tensor:
    """A mask as uint8 (H, W): 0 for background, 255 for what is salient, greys between.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no image, has colours or more than 8 bits, or holds nothing above 1.
    """
    grey, mode = look_into(path, lambda image: (_grey(image), image.mode))
    if grey is None:
        raise ValueError(f"{str(path)!r} is {mode}, with colours or of more than 8 bits: a grey image is needed")
    if grey.max() == 1:
        raise ValueError(f"{str(path)!r} holds 0 and 1 alone: 255 is needed where something is salient")
    return torch.from_numpy(grey)


def _grey(image: Image.Image) -> np.ndarray | None:
    """uint8 (H, W); None for an image that is not grey."""
    if image.mode in ("1", "L", "LA"):
        return np.array(image.convert("L"))
    if image.mode in ("P", "RGB", "RGBA"):
        pixels = np.array(image.convert("RGB"))
        return pixels[..., 0].copy() if np.ptp(pixels, axis=2).max() <= NEARLY_GREY else None
    return None


def mask_pairs(folder: Path) -> list[tuple[Path, Path]]:
    """Images with their masks: ``{images,masks}/NAME.*`` below a folder F, or ``{F-Image,F-Mask}/NAME.*`` as DUTS has.

    Raises:
        FileNotFoundError: as :func:`surgery.vision.label_maps.pairs_below`.
    """
    name = folder.absolute().name
    own = (f"{name}-Image", f"{name}-Mask")
    return pairs_below(folder, own if (folder / own[0]).is_dir() else ("images", "masks"))


def finds_objects(model: nn.Module) -> bool:
    """Whether a model gives a map of one channel for an image, of its size: how salient every pixel is."""
    return map_channels(model) == 1


def saliency_map(logits: Tensor, size: Sequence[int]) -> np.ndarray:
    """From logits (1, h, w), any floating dtype, to 8-bit grey, uint8 (H, W), resized (bilinear) to ``size`` (H, W)."""
    shares = logits.float().sigmoid()[None]
    enlarged = interpolate(shares, tuple(size), mode="bilinear", align_corners=False)[0, 0]
    return (255 * enlarged).round().to(torch.uint8).cpu().numpy()


@dataclass(frozen=True)
class JudgedFolder:
    """Figures over ``images`` images, at ``images_per_second`` with loading and judging."""

    figures: SaliencyFigures
    images: int
    images_per_second: float

    def __str__(self) -> str:
        values = ", ".join(f"{name} {value:.2f}" for name, value in self.figures.by_name().items())
        return f"{values} (%) of {self.images} images ({self.images_per_second:.2g} images/s)"


def evaluate(model: nn.Module, folder: str | Path, *, progress: bool = True) -> JudgedFolder:
    """Judge a network on ``folder/{images,masks}/NAME.*`` (or on ``folder/val`` or ``folder/test``, laid out so).

    Raises:
        FileNotFoundError: a folder or the mask of an image is missing.
        ValueError: a file that is no image, or no mask, or sizes that differ.
        MissingPackageError: pysodmetrics is not installed.
    """
    pairs = mask_pairs(held_out_part(folder) or Path(folder))
    scores, begin = [], time.perf_counter()
    with eval_mode(model), torch.inference_mode():
        for image_path, mask_path in tqdm(pairs, "evaluating", unit="image", leave=False, disable=not progress):
            prediction, mask = _predicted(model, image_path), read_mask(mask_path)
            check_same_size(image_path, prediction.shape, mask)
            scores.append(image_scores(prediction, mask.numpy()))
    return JudgedFolder(figures(scores), len(pairs), len(pairs) / (time.perf_counter() - begin))


def _predicted(model: nn.Module, path: str | Path) -> np.ndarray:
    """The map of the image in a file, uint8 of its size; the network looks at it resized to its own size."""
    preprocessing, weight = preprocessing_of(model), first_weight(model)
    image = open_image(path, preprocessing.size[0])
    logits = model(preprocessing.resized_image()(image)[None].to(weight))
    return saliency_map(logits[0], (image.height, image.width))


def predict(model: nn.Module, paths: Sequence[str | Path], out: str | Path) -> list[Path]:
    """Write ``out/STEM.saliency.png`` for each image: 8-bit grey, of the image's size.

    Raises:
        FileNotFoundError, ValueError: a file that does not exist, or is no image; two that would have the same map.
        OSError: a map cannot be written.
    """
    targets = targets_in(Path(out), paths, "saliency")
    with eval_mode(model), torch.inference_mode():
        for path, target in tqdm(targets.items(), "predicting", unit="image", leave=False, disable=len(targets) < 3):
            content = io.BytesIO()
            Image.fromarray(_predicted(model, path)).save(content, format="PNG", optimize=True)
            write_atomically(target, content.getvalue())
    return list(targets.values())


def map_table(maps: Sequence[Path]) -> str:
    """What :func:`predict` wrote, as text: a line for each map with the share of its pixels above one half."""
    shares = [100 * (read_grey(path) > 127).mean() for path in maps]
    rows = [(str(path), f"{share:.1f} %") for path, share in zip(maps, shares, strict=True)]
    return table(("saliency map", "salient"), rows, right=(1,))


def read_grey(path: str | Path) -> np.ndarray:
    """An 8-bit grey image, uint8 (H, W); raises as :func:`surgery.vision.image_files.open_image`."""
    return np.array(open_image(path, 1))
