"""How images are made into what a model takes, and what its outputs are called."""

import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, cast

from PIL import Image
from timm.data import create_transform, resolve_data_config
from torch import Tensor, nn
from torchvision.transforms import Compose, Normalize, ToTensor

from surgery.input_size import InputSize, image_shapes

MEMORY = "surgery_preprocessing"
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

    Networks that label pixels take images at their own size; they are only normalised.
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
        channels = self.size[0] if len(self.size) == 3 else 0
        if channels < 1 or not all(isinstance(n, int) and n > 0 for n in self.size):
            raise ValueError(f"preprocessing size={self.size!r}: three positive ints (C, H, W) are needed")
        if len(self.mean) != channels or len(self.std) != channels or not all(value > 0 for value in self.std):
            raise ValueError(f"preprocessing mean={self.mean!r}, std={self.std!r}: one of each, std > 0, per channel")
        if not 0 < self.crop_pct <= 1 or self.interpolation not in INTERPOLATIONS:
            raise ValueError(
                f"preprocessing crop_pct={self.crop_pct!r}, interpolation={self.interpolation!r}: a share in (0, 1] "
                f"and one of {', '.join(INTERPOLATIONS)} are needed"
            )
        if not all(re.fullmatch("#[0-9a-f]{6}", colour) for colour in self.colours):
            raise ValueError(f"preprocessing colours={self.colours!r}: '#rrggbb' of each class is needed")
        if self.ignore is not None and not isinstance(self.ignore, int):
            raise ValueError(f"preprocessing ignore={self.ignore!r}: a pixel value, an int, is needed")

    def transform(self) -> Callable[[Image.Image], Tensor]:
        """timm's evaluation transform: a PIL image to float32 (C, H, W)."""
        known = asdict(self)
        for key in ("classes", "size", "ignore", "colours"):
            del known[key]
        return cast(Any, create_transform(input_size=self.size, is_training=False, **known))

    def whole_image(self) -> Callable[[Image.Image], Tensor]:
        """A PIL image to float32 (C, H, W), normalised, at its own size."""
        return cast(Any, Compose([ToTensor(), Normalize(self.mean, self.std)]))

    def to_json(self) -> dict[str, Any]:
        known = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}
        return {
            key: value for key, value in known.items() if key not in ("ignore", "colours") or value not in (None, [])
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Preprocessing":
        """From what :meth:`to_json` gave; raises ValueError or TypeError for anything else."""
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in value.items()}
        return cls(**values)


def preprocessing_of(model: nn.Module, input_size: InputSize | None = None) -> Preprocessing:
    """What the model was saved with; else what its timm configuration says; else timm's defaults.

    Args:
        input_size: (C, H, W), (H, W) or one side in place of the size found.
    """
    known = getattr(model, MEMORY, None)
    if not isinstance(known, Preprocessing):
        config = resolve_data_config({}, model=model)
        if input_size is not None:  # mean and std follow the number of channels
            shape = image_shapes(input_size, config["input_size"][:1])[0]
            config = resolve_data_config({"input_size": shape}, model=model)
        known = Preprocessing(
            tuple(config["input_size"]),
            tuple(config["mean"]),
            tuple(config["std"]),
            config["crop_pct"],
            config["interpolation"],
        )
    return known if input_size is None else replace(known, size=image_shapes(input_size, known.size[:1])[0])
