"""How images are made into what a model takes, and what its outputs are called."""

import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from math import isfinite, prod
from numbers import Real
from typing import Any, cast

from PIL import Image
from timm.data import create_transform, resolve_data_config
from torch import Tensor, nn
from torchvision.transforms import Compose, InterpolationMode, Normalize, Resize, ToTensor

from surgery.core.errors import is_whole
from surgery.graph.input_size import InputSize, image_shapes

MEMORY = "surgery_preprocessing"
LARGEST_SIDE = 16_384  # pixels, of the crop and of the image that it is taken from
MOST_NUMBERS = 2**28  # of one prepared image: a gigabyte of float32
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming")


@dataclass(frozen=True)
class Preprocessing:
    """Scaled so that the centre crop is ``crop_pct`` of the shorter side, cropped to ``size``, from 0 to 1, normalised.

    Attributes:
        size: (C, H, W) of the crop.
        mean, std: per channel, of pixels from 0 to 1.
        classes: names of the model's outputs, in their order; empty where they are not known.
        ignore: of label maps, the value for pixels without a class, besides 255.
        colours: ``#rrggbb`` of each class in label maps; empty for PASCAL VOC's.

    Networks that label pixels take images at their own size; they are only normalised. Those that find salient objects
    take them resized to ``size``, whatever their shape.
    """

    size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_pct: float = 1.0
    interpolation: str = "bicubic"
    classes: tuple[str, ...] = ()
    ignore: int | None = None
    colours: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check("size", self.size, self._is_size(), f"three positive ints (C, H, W), at most {LARGEST_SIDE} a side,")
        channels = self.size[0]
        for key, values in (("mean", self.mean), ("std", self.std)):
            of_channels = isinstance(values, tuple | list) and len(values) == channels and all(map(_is_number, values))
            _check(key, values, of_channels and (key == "mean" or min(values) > 0), "one for each channel, std > 0,")
        enlarged = _is_number(self.crop_pct) and 0 < self.crop_pct <= 1
        enlarged = enlarged and max(self.size[1:]) / self.crop_pct <= LARGEST_SIDE
        _check("crop_pct", self.crop_pct, enlarged, f"a share in (0, 1], of a side of at most {LARGEST_SIDE},")
        _check("interpolation", self.interpolation, self.interpolation in INTERPOLATIONS, ", ".join(INTERPOLATIONS))
        names = isinstance(self.classes, tuple | list) and all(isinstance(name, str) for name in self.classes)
        _check("classes", self.classes, names, "a name (text) for each output")
        hexadecimal = isinstance(self.colours, tuple | list) and all(map(_is_colour, self.colours))
        _check("colours", self.colours, hexadecimal, "'#rrggbb' of each class")
        pixel = self.ignore is None or is_whole(self.ignore, 0, 255)
        _check("ignore", self.ignore, pixel, "a pixel value, an int from 0 to 255,")

    def _is_size(self) -> bool:
        sides = self.size if isinstance(self.size, tuple | list) and len(self.size) == 3 else (0,)
        return all(is_whole(side, 1, LARGEST_SIDE) for side in sides) and prod(sides) <= MOST_NUMBERS

    def transform(self) -> Callable[[Image.Image], Tensor]:
        """timm's evaluation transform: a PIL image to float32 (C, H, W)."""
        options = asdict(self)
        for key in ("classes", "size", "ignore", "colours"):
            del options[key]
        return cast(Any, create_transform(input_size=self.size, is_training=False, **options))

    def whole_image(self) -> Callable[[Image.Image], Tensor]:
        """A PIL image to float32 (C, H, W), normalised, at its own size."""
        return cast(Any, Compose([ToTensor(), Normalize(self.mean, self.std)]))

    def resized_image(self) -> Callable[[Image.Image], Tensor]:
        """A PIL image to float32 (C, H, W), normalised, all of it resized to ``size``."""
        resize = Resize(self.size[1:], InterpolationMode(self.interpolation))
        return cast(Any, Compose([resize, ToTensor(), Normalize(self.mean, self.std)]))

    def to_json(self) -> dict[str, Any]:
        values = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}
        return {
            key: value for key, value in values.items() if key not in ("ignore", "colours") or value not in (None, [])
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Preprocessing":
        """From what :meth:`to_json` gave; raises ValueError for anything else."""
        keys = [field.name for field in fields(cls)]
        if not set(keys[:3]) <= set(value) <= set(keys):
            raise ValueError(f"preprocessing has {list(value)!r:.200}; {', '.join(keys)} (the first three) are needed")
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in value.items()}
        return cls(**values)


def _check(name: str, value: object, is_right: bool, needed: str) -> None:
    if not is_right:
        raise ValueError(f"preprocessing {name}={value!r:.200}: {needed} is needed")


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and isfinite(value)


def _is_colour(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch("#[0-9a-f]{6}", value) is not None


def preprocessing_of(model: nn.Module, input_size: InputSize | None = None) -> Preprocessing:
    """What the model was saved with; else what its timm configuration says; else timm's defaults.

    Args:
        input_size: (C, H, W), (H, W) or one side in place of the size found.
    """
    preprocessing = getattr(model, MEMORY, None)
    if not isinstance(preprocessing, Preprocessing):
        config = resolve_data_config({}, model=model)
        if input_size is not None:  # mean and std follow the number of channels
            shape = image_shapes(input_size, config["input_size"][:1])[0]
            config = resolve_data_config({"input_size": shape}, model=model)
        preprocessing = Preprocessing(
            tuple(config["input_size"]),
            tuple(config["mean"]),
            tuple(config["std"]),
            config["crop_pct"],
            config["interpolation"],
        )
    return (
        preprocessing
        if input_size is None
        else replace(preprocessing, size=image_shapes(input_size, preprocessing.size[:1])[0])
    )
