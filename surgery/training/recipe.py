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
from surgery.segmentation import View

TRACKERS = ("tensorboard", "wandb", "mlflow")
PRECISIONS = ("auto", "no", "fp16", "bf16")
SCHEDULERS = ("cosine", "tanh", "step", "multistep", "poly")  # timm's that need nothing but the epochs
SEGMENTATION = ("cityscapes", "segmentation_folder")


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
    """``name`` of a data set (digits, cifar10, cifar100, imagenet, folder, shards, torch/NAME, hfds/NAME; cityscapes,
    segmentation_folder), image and batch size, augmentation.

    ``root`` is the folder that holds the data set's (default: the variable SURGERY_DATA); for ``folder`` it is the
    folder itself. Where that has no parts for training and for testing, ``holdout`` of its images judge. Training
    images are cropped at random: with ``padding``, to their size from the image with that many black pixels around;
    without, by timm's random resized crop to a share of the area within ``scale``. Test images are scaled so that their
    centre crop is ``crop_pct`` of the shorter side. ``mean`` and ``std`` are of pixels from 0 to 1.

    ``torch/NAME`` is a data set of torchvision below ``root``, ``hfds/NAME`` one of Hugging Face, a local folder or one
    already in that library's cache (``root``, where given, is that cache). ``splits`` names their parts for training
    and for testing, ``columns`` the Hugging Face set's with images and labels. ``shards`` are tar files,
    ``{train,val}/*.tar``. ``classes`` is their number where the data set does not say.

    Images with label maps are for training enlarged by a factor within ``scale`` and cropped at random, with black and
    unlabelled pixels around where they are smaller; for testing they are left as they are. ``ignore`` is the
    value of pixels without a class, besides 255.

    An image file that cannot be read is an error; with ``skip_unreadable`` all files in folders are decoded once before
    the job begins, and those that cannot be are left out, in both parts.
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
    classes: int | None = None
    splits: tuple[str, str] = ("train", "validation")
    columns: tuple[str, str] = ("image", "label")
    ignore: int | None = None
    skip_unreadable: bool = False

    @property
    def segments(self) -> bool:
        """Whether labels are maps."""
        return self.name in SEGMENTATION

    def check(self) -> None:
        """Raise RecipeError for what cannot be."""
        if self.batch_size < 2 or self.image_size < 8:
            raise RecipeError(f"data: batch_size >= 2 and image_size >= 8 are needed, got {self}")
        if not 0 <= self.holdout < 1:
            raise RecipeError(f"data.holdout={self.holdout}: a share from 0 to below 1 is needed")
        if not 0 < self.crop_pct <= 1:
            raise RecipeError(f"data.crop_pct={self.crop_pct}: a share above 0 is needed, at most 1")
        check_key("data.interpolation", self.interpolation, ("bilinear", "bicubic"))
        if not 0 < self.scale[0] <= self.scale[1]:
            raise RecipeError(f"data.scale={list(self.scale)}: the smallest, above 0, and the largest are needed")
        if self.classes is not None and self.classes < 2:
            raise RecipeError(f"data.classes={self.classes}: at least 2 are needed")
        if self.segments:
            for key, plain in (("padding", 0), ("holdout", 0.0), ("crop_pct", 1.0)):
                if getattr(self, key) != plain:
                    raise RecipeError(
                        f"data.{key}={getattr(self, key)}: not for data.name={self.name}; it is {plain} there"
                    )


@dataclass(frozen=True)
class SegmentationSettings:
    """For images with label maps: the auxiliary head's share of the loss, and how test images are looked at.

    ``window`` is the side of the windows that cover an image, each by a share ``overlap`` over the one before; 0 is the
    whole image at once. With ``flip`` its mirror image is looked at too.
    """

    auxiliary_weight: float = 0.4
    window: int = 0
    overlap: float = 1 / 3
    flip: bool = False


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
    norms unless ``decay_all``; ``power`` is that of the poly scheduler. ``warmup_epochs``, from 0, may be a part
    of one. With ``finetune.lr_by_damage`` ``lr`` is the rate at which a network learns from scratch; it is multiplied
    by the square root of the share that surgery and calibration cost of the original's lead over guessing, in loss on
    training images (0.05 to 1; docs/recovery.md); the control is trained at the same rate. ``accumulate`` batches make
    one step.
    A state to resume from is written every ``save_minutes`` and after each epoch; the last ``keep`` of them stay. With
    ``finetune.keep_best`` the network of the best epoch is written beside, to best.safetensors.
    ``distill_weight`` is the share of the loss that comes from the teacher's logits (0: labels only), ``block_weight``
    what is added of the error of the converted blocks' outputs (as a share of their variance); with ``block_fade`` it
    falls from epoch to epoch, to 0 in the last of several. A baseline of 0 epochs leaves the original as it was
    initialised, so that the fine-tuning is a training from scratch; a fine-tuning of 0 epochs leaves the network as
    surgery and calibration made it.
    """

    epochs: int = 10
    batch_size: int | None = None
    accumulate: int = 1
    optimizer: str = "adamw"
    lr: float = 1e-3
    lr_by_damage: bool = False  # fine-tuning only
    weight_decay: float = 0.05
    decay_all: bool = False
    scheduler: str = "cosine"
    power: float = 0.9
    warmup_epochs: float = 1.0  # 0 to below epochs
    smoothing: float = 0.0
    mixup: float = 0.0
    ema_decay: float = 0.0
    clip_grad: float = 0.0
    save_minutes: float = 10.0
    keep: int = 1
    keep_best: bool = False
    distill_weight: float = 0.0
    temperature: float = 1.0
    block_weight: float = 0.0
    block_fade: bool = False

    def check(self, name: str) -> None:
        """Raise RecipeError for what cannot be, under the name of the group that holds it."""
        least = {"epochs": 0, "batch_size": 2, "accumulate": 1, "keep": 1, "power": 0, "block_weight": 0}
        for key, minimum in least.items():
            value = getattr(self, key)
            if value is not None and value < minimum:
                raise RecipeError(f"{name}.{key}={value}: at least {minimum} is needed")
        check_key(f"{name}.scheduler", self.scheduler, SCHEDULERS)
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

    def block_weight_in(self, epoch: int) -> float:
        """``block_weight`` as it is in an epoch, counted from 0."""
        if not self.block_fade or self.epochs < 2:
            return self.block_weight
        return self.block_weight * (1 - epoch / (self.epochs - 1))


@dataclass(frozen=True)
class Recipe:
    """A whole job. ``output`` is its folder, ``fresh`` starts over, ``precision`` is Accelerate's (no, fp16, bf16) or
    ``auto``: bf16 where the machine has instructions for it, else fp16 on CUDA and no elsewhere. ``channels_last`` is
    the memory format of networks and images (faster on most machines), ``threads`` torch's.
    ``sync_bn`` lets the GPUs of a job share BatchNorm's statistics, ``compile`` trains through torch.compile,
    ``checkpoint_activations`` computes activations twice instead of keeping them (timm's grad_checkpointing), and
    ``track`` reports to tensorboard, wandb or mlflow besides the CSV file.
    With ``find_batch_size`` a batch that does not fit at a training's beginning is halved, and ``accumulate`` doubled,
    until it does.

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
    sync_bn: bool = False
    compile: bool = False
    checkpoint_activations: bool = False
    find_batch_size: bool = False
    track: str | None = None
    fresh: bool = False
    data: DataSettings = field(default_factory=DataSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    baseline: TrainSettings = field(default_factory=lambda: TrainSettings(epochs=0))
    surgery: SurgerySettings = field(default_factory=SurgerySettings)
    finetune: TrainSettings = field(default_factory=TrainSettings)
    segmentation: SegmentationSettings = field(default_factory=SegmentationSettings)

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
        if self.baseline.lr_by_damage:
            raise RecipeError("baseline.lr_by_damage=true: nothing was converted before the baseline; false is needed")
        if self.baseline.keep_best:
            raise RecipeError("baseline.keep_best=true: best.safetensors is of the fine-tuning; false is needed")
        self.data.check()
        check_key("precision", self.precision, PRECISIONS)
        if self.track is not None:
            check_key("track", self.track, TRACKERS)
        if self.compile and self.finetune.block_weight:
            raise RecipeError(
                "compile=true: what blocks give cannot be seen in a compiled network; finetune.block_weight=0"
            )
        if self.data.segments:
            self._check_segmentation()

    def _check_segmentation(self) -> None:
        try:
            View(self.segmentation.window, self.segmentation.overlap, self.segmentation.flip)
        except ValueError as error:
            raise RecipeError(f"segmentation: {error}") from None
        for name, settings in (("baseline", self.baseline), ("finetune", self.finetune)):
            if settings.mixup:
                raise RecipeError(f"{name}.mixup={settings.mixup}: not for label maps; 0 is needed")

    @property
    def from_scratch(self) -> bool:
        """Whether what is converted has never been trained."""
        return not (self.model.checkpoint or self.model.pretrained or self.baseline.epochs)

    @property
    def surgery_arguments(self) -> dict[str, Any]:
        """Of ``surgery.plan`` and ``surgery.convert``, but for the method."""
        wanted, side = self.surgery, self.data.image_size
        size = {"input_size": (3, side, side)} if self.data.segments else {}
        return {**size, "zeta": wanted.zeta, "mode": wanted.mode, **wanted.options}

    @property
    def title(self) -> str:
        """Of a plot: model, data set and conversion."""
        wanted, model = self.surgery, self.model
        ratio = "" if wanted.zeta is None else f", zeta = {wanted.zeta}"
        mode = "" if wanted.mode == "squeeze" else f", mode {wanted.mode}"
        return f"{model.checkpoint or model.name} on {self.data.name}, converted to {wanted.method}{mode}{ratio}"

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
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            raise RecipeError(f"{override!r}: {text!r} is no YAML value") from None
        _set(values, key.split("."), value, override)
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
        if kind is str and value is False:
            return "no"  # which YAML reads as false
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        if kind is float and isinstance(value, str) and _is_number(value):
            return float(value)  # YAML reads 1e-3 as a string
        if kind is tuple and isinstance(value, list) and len(value) == len(typing.get_args(option)):
            return tuple(_checked(of, item, key) for of, item in zip(typing.get_args(option), value, strict=True))
        if isinstance(value, kind) and not (isinstance(value, bool) and kind is not bool):
            return value
    raise RecipeError(f"{key}={value!r}: {getattr(hint, '__name__', hint)} is needed, not {type(value).__name__}")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
