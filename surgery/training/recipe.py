"""Recipes: nested settings read from YAML and ``key=value`` arguments, checked before anything starts."""

import dataclasses
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from surgery.errors import check_choice


class RecipeError(ValueError):
    """A recipe with an unknown key, a wrong type or a combination that cannot be."""


def check_key(key: str, value: str, accepted: Iterable[str]) -> None:
    """Raise RecipeError, with the nearest of what is accepted, for a value that is not."""
    try:
        check_choice(key, value, accepted)
    except ValueError as error:
        raise RecipeError(str(error)) from None


@dataclass(frozen=True)
class DataSettings:
    """``name`` of a data set (digits, cifar10, cifar100, imagenet, folder), image and batch size, augmentation.

    ``root`` is the folder that holds the data set's (default: the variable SURGERY_DATA); for ``folder`` it is the
    folder itself. Where that has no parts for training and for testing, ``holdout`` of its images judge. Training
    images are cropped at random: with ``padding``, to their size from the image with that many black pixels around;
    without, by timm's random resized crop to a share of the area within ``scale``. Test images are scaled so that their
    centre crop is ``crop_pct`` of the shorter side. ``mean`` and ``std`` are of pixels from 0 to 1.
    """

    name: str = "digits"
    root: str | None = None
    holdout: float = 0.0
    image_size: int = 32
    batch_size: int = 64
    workers: int = 0
    scale: tuple[float, float] = (0.8, 1.0)
    padding: int = 0
    hflip: float = 0.0
    color_jitter: float = 0.0
    crop_pct: float = 1.0
    interpolation: str = "bicubic"
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    def check(self) -> None:
        """Raise RecipeError for what cannot be."""
        if self.batch_size < 2 or self.image_size < 8:
            raise RecipeError(f"data: batch_size >= 2 and image_size >= 8 are needed, got {self}")
        if not 0 <= self.holdout < 1:
            raise RecipeError(f"data.holdout={self.holdout}: a share from 0 to below 1 is needed")
        if not 0 < self.crop_pct <= 1:
            raise RecipeError(f"data.crop_pct={self.crop_pct}: a share above 0 is needed, at most 1")
        check_key("data.interpolation", self.interpolation, ("bilinear", "bicubic"))


@dataclass(frozen=True)
class ModelSettings:
    """The network: ``name`` as for ``surgery.create`` with its ``kwargs``; ``checkpoint`` is a file of surgery.save."""

    name: str = "timm/resnet26"
    kwargs: dict[str, Any] = field(default_factory=dict)
    pretrained: bool = False
    checkpoint: str | None = None


@dataclass(frozen=True)
class SurgerySettings:
    """Arguments of ``surgery.convert``; ``options`` holds its further ones (include, tau, …).

    ``calibrate`` is a number of training images, taken without their labels, for ``surgery.calibrate`` (0: none).
    ``match`` reorders channels first (default: where it is calibrated).
    """

    method: str = "pix"
    zeta: int | None = None
    mode: str = "squeeze"
    calibrate: int = 0
    match: bool | None = None
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainSettings:
    """One training: timm's optimiser and scheduler by name, mixup, EMA, and distillation from the original.

    ``batch_size`` is ``data.batch_size`` where it is not given; for each process. ``weight_decay`` spares biases and
    norms unless ``decay_all``.
    A state to resume from is written every ``save_minutes`` and after each epoch.
    ``distill_weight`` is the share of the loss that comes from the teacher's logits (0: labels only), ``block_weight``
    what is added of the error of the converted blocks' outputs (as a share of their variance). A baseline of 0
    epochs leaves the original as it was initialised, so that the fine-tuning is a training from scratch; a fine-tuning
    of 0 epochs leaves the network as surgery and calibration made it.
    """

    epochs: int = 10
    batch_size: int | None = None
    optimizer: str = "adamw"
    lr: float = 1e-3
    weight_decay: float = 0.05
    decay_all: bool = False
    scheduler: str = "cosine"
    warmup_epochs: int = 1
    smoothing: float = 0.0
    mixup: float = 0.0
    ema_decay: float = 0.0
    clip_grad: float = 0.0
    save_minutes: float = 10.0
    distill_weight: float = 0.0
    temperature: float = 1.0
    block_weight: float = 0.0

    def check(self, name: str) -> None:
        """Raise RecipeError for what cannot be, under the name of the group that holds it."""
        for key, least in (("epochs", 0), ("batch_size", 2), ("block_weight", 0)):
            value = getattr(self, key)
            if value is not None and value < least:
                raise RecipeError(f"{name}.{key}={value}: at least {least} is needed")
        if self.lr <= 0:
            raise RecipeError(f"{name}.lr={self.lr}: a number above 0 is needed")
        if not 0 <= self.distill_weight <= 1:
            raise RecipeError(f"{name}.distill_weight={self.distill_weight}: a share from 0 to 1 is needed")
        if self.mixup and self.distill_weight == 1:
            raise RecipeError(f"{name}: mixup mixes labels, and distill_weight=1 uses none; set one of them to 0")

    @property
    def distills(self) -> bool:
        """Whether a teacher is needed."""
        return self.distill_weight > 0 or self.block_weight > 0


@dataclass(frozen=True)
class Recipe:
    """A whole job. ``output`` is its folder, ``fresh`` starts over, ``precision`` is Accelerate's (no, fp16, bf16),
    ``channels_last`` the memory format of networks and images (faster on most machines), ``threads`` torch's.

    The original is ``model``, trained by ``baseline`` first where that is given and there is no checkpoint.
    With ``seeds`` above 1 calibration and fine-tuning are repeated from ``seed``, ``seed`` + 1, … and reported as mean
    ± standard deviation. ``control`` fine-tunes the unconverted network beside, in just the same way.
    """

    output: str = "runs/quickstart"
    seed: int = 0
    seeds: int = 1
    control: bool = False
    precision: str = "no"
    channels_last: bool = False
    threads: int = 0
    fresh: bool = False
    data: DataSettings = field(default_factory=DataSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    baseline: TrainSettings = field(default_factory=lambda: TrainSettings(epochs=0))
    surgery: SurgerySettings = field(default_factory=SurgerySettings)
    finetune: TrainSettings = field(default_factory=TrainSettings)

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise RecipeError(f"seeds={self.seeds}: at least 1 is needed")
        self.baseline.check("baseline")
        self.finetune.check("finetune")
        if self.surgery.calibrate < 0:
            raise RecipeError(f"surgery.calibrate={self.surgery.calibrate}: a number of images, or 0, is needed")
        for key in ("distill_weight", "block_weight"):
            if getattr(self.baseline, key):
                raise RecipeError(f"baseline.{key}: the baseline has no teacher; 0 is needed")
        self.data.check()
        check_key("precision", self.precision, ("no", "fp16", "bf16"))

    @property
    def from_scratch(self) -> bool:
        """Whether what is converted has never been trained."""
        return not (self.model.checkpoint or self.model.pretrained or self.baseline.epochs)

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def load_recipe(path: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read a recipe file and apply ``key=value`` arguments (dotted keys, YAML values: ``finetune.lr=0.01``).

    Raises:
        FileNotFoundError: no such file.
        RecipeError: naming the key, its value and what would be accepted.
    """
    try:
        values = yaml.safe_load(Path(path).read_text())
    except yaml.YAMLError as error:
        raise RecipeError(f"{path} is not YAML: {error}") from None
    if not isinstance(values, dict):
        raise RecipeError(f"{path}: a mapping of recipe keys is needed, found {type(values).__name__}")
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator:
            raise RecipeError(f"{override!r}: key=value is needed, such as finetune.epochs=5")
        _set(values, key.split("."), yaml.safe_load(text), override)
    return _build(Recipe, values, "")


def _set(values: dict[str, Any], path: list[str], value: Any, override: str) -> None:
    for key in path[:-1]:
        values = values.setdefault(key, {})
        if not isinstance(values, dict):
            raise RecipeError(f"{override!r}: {key!r} is a value, not a group of keys")
    values[path[-1]] = value


def _build(cls: type, values: Any, prefix: str) -> Any:
    if not isinstance(values, Mapping):
        raise RecipeError(f"{prefix.rstrip('.')}={values!r}: a group of keys is needed")
    hints = typing.get_type_hints(cls)
    for key in values:
        try:
            check_choice("recipe key", key, hints)
        except ValueError as error:
            raise RecipeError(f"in {prefix.rstrip('.') or 'the recipe'}: {error}") from None
    return cls(**{key: _checked(hints[key], value, prefix + key) for key, value in values.items()})


def _checked(hint: Any, value: Any, key: str) -> Any:
    """The value as its declared type; raises RecipeError otherwise."""
    if dataclasses.is_dataclass(hint):
        return _build(typing.cast(type, hint), value, key + ".")
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    for option in options:
        kind = typing.get_origin(option) or option
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        if kind is float and isinstance(value, str) and _is_number(value):
            return float(value)  # YAML reads 1e-3 as a string
        if kind is tuple and isinstance(value, list) and len(value) == len(typing.get_args(option)):
            return tuple(_checked(float, item, key) for item in value)
        if isinstance(value, kind) and not (isinstance(value, bool) and kind is not bool):
            return value
    raise RecipeError(f"{key}={value!r}: {getattr(hint, '__name__', hint)} is needed, not {type(value).__name__}")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
