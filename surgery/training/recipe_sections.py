"""The groups of a recipe's keys: images, model, surgery, trainings, label maps.

What a key is, its range and its meaning stand in one place, its declaration. pydantic's dataclasses check them whoever
makes one, and remain dataclasses (``asdict``, ``replace``). What keys may not be together is checked by their group.
"""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field, Strict
from pydantic.dataclasses import dataclass

from surgery.checkpoint.builder_arguments import plain_arguments
from surgery.core.errors import SourceError
from surgery.planning.default_method import default_method
from surgery.training.recipe_errors import RecipeError, raises_recipe_errors
from surgery.training.recipe_values import (
    Batch,
    Deviation,
    FileName,
    Flag,
    Interpolation,
    MethodName,
    Mode,
    Number,
    Optimizer,
    Scale,
    Scheduler,
    Share,
    Text,
    Whole,
)
from surgery.vision.segmentation import View

LEAST_SIDE = 8  # of training images, in pixels

SEGMENTATION_DATASETS = ("cityscapes", "segmentation_folder")
SALIENCY_DATASETS = ("sod",)
WHOLE_SCALE = (0.8, 1.0)  # data.scale where nobody sets it
HELD_ELSEWHERE = {
    "surgery.options": {
        **{name: f"surgery.{name} is the key" for name in ("method", "zeta", "mode", "calibrate", "match", "images")},
        **dict.fromkeys(("strict", "inplace", "optimizers"), "the job sets it; leave it out"),
        "input_size": "data.image_size is the key",
    },
    "model.kwargs": {"pretrained": "model.pretrained is the key"},
}
FORBID = ConfigDict(extra="forbid")


@raises_recipe_errors
@dataclass(frozen=True, config=FORBID)
class DataSettings:
    """Images: which, of what size, in batches of how many, how augmented.

    Training images are cropped at random: with ``padding``, to their size from the image with that many black pixels
    around; without, by timm's random resized crop to a share of the area within ``scale``. Images with label maps are
    for training enlarged by a factor within ``scale`` and cropped at random, with black and unlabelled pixels around
    where they are smaller; for testing they are left as they are. Images with saliency masks are resized, whatever
    their shape, for training after a crop of up to 15 pixels off each side.
    """

    PREFIX: ClassVar[str] = "data"

    name: Text = Field(
        default="digits",
        description="digits, cifar10, cifar100, imagenet, folder, shards, torch/NAME (torchvision's), hfds/NAME "
        "(Hugging Face's, a local folder or from its cache), cityscapes, segmentation_folder, sod",
    )
    root: FileName | None = Field(
        default=None,
        description="the folder that holds the dataset's folder, or that folder itself; default: the variable "
        "SURGERY_DATA, but folder and segmentation_folder need the key (of hfds: the cache)",
    )
    holdout: Number = Field(
        default=0.0, ge=0, lt=1, description="for folder: share of the images to test on, where there is no val or test"
    )
    image_size: Whole = Field(default=32, ge=8, le=4096, description="height and width of training images, in pixels")
    batch_size: Batch = Field(default=64, description="images of a batch, for each process")
    workers: Whole = Field(default=0, ge=0, le=256, description="processes that load images; 0: the main one does")
    scale: tuple[Scale, Scale] = Field(
        default=WHOLE_SCALE,
        description="random crops' share of the area; of images with label maps, the factor of their size",
    )
    padding: Whole = Field(
        default=0,
        ge=0,
        le=1024,
        description="pixels of black around an image for a random crop of the image's own size",
    )
    hflip: Share = Field(default=0.0, description="probability that a training image is mirrored")
    vflip: Share = Field(
        default=0.0, description="for sod: probability that a training image is turned upside down, if not mirrored"
    )
    color_jitter: Share = Field(default=0.0, description="most by which brightness, contrast and saturation change")
    crop_pct: Number = Field(
        default=1.0, gt=0, le=1, description="share of a test image's shorter side in its centre crop"
    )
    interpolation: Interpolation = Field(default="bicubic", description="how images are resized")
    mean: tuple[Share, Share, Share] = Field(default=(0.5, 0.5, 0.5), description="of pixels from 0 to 1, per channel")
    std: tuple[Deviation, Deviation, Deviation] = Field(default=(0.5, 0.5, 0.5), description="of pixels from 0 to 1")
    classes: Annotated[Whole, Field(ge=2, le=1_000_000)] | None = Field(
        default=None, description="their number, where the dataset does not say"
    )
    splits: tuple[Text, Text] = Field(
        default=("train", "validation"), description="torch/ and hfds/: names of the parts for training and for testing"
    )
    columns: tuple[Text, Text] = Field(default=("image", "label"), description="hfds/: names of the columns")
    ignore: Annotated[Whole, Field(ge=0, le=255)] | None = Field(
        default=None, description="in label maps, the value of pixels without a class, besides 255"
    )
    skip_unreadable: Flag = Field(
        default=False,
        description="leave out image files that cannot be decoded, with their count; by default they are an error",
    )

    def __post_init__(self) -> None:
        if self.scale[0] > self.scale[1]:
            raise RecipeError(f"data.scale={list(self.scale)}: the smallest and the largest, in this order, are needed")
        if not self.segments and self.scale[1] > 1:
            raise RecipeError(f"data.scale={list(self.scale)}: shares of the area, at most 1, are needed")
        if self.hflip + self.vflip > 1:
            raise RecipeError(f"data.hflip={self.hflip} and data.vflip={self.vflip}: together at most 1 is needed")
        self._check_plain()

    def _check_plain(self) -> None:
        """Raise RecipeError for a key that the dataset's images have no use for."""
        unused: dict[str, object] = {"padding": 0, "holdout": 0.0, "crop_pct": 1.0} if self.has_maps else {}
        unused |= {"scale": WHOLE_SCALE} if self.saliency else {"vflip": 0.0}
        for key, plain in unused.items():
            if getattr(self, key) != plain:
                raise RecipeError(
                    f"data.{key}={getattr(self, key)}: not for data.name={self.name}; it is {plain} there"
                )

    @property
    def segments(self) -> bool:
        """Whether labels are maps of classes."""
        return self.name in SEGMENTATION_DATASETS

    @property
    def saliency(self) -> bool:
        """Whether labels are masks of what is salient."""
        return self.name in SALIENCY_DATASETS

    @property
    def has_maps(self) -> bool:
        """Whether labels are maps of either kind."""
        return self.segments or self.saliency


@raises_recipe_errors
@dataclass(frozen=True, config=FORBID)
class SegmentationSettings:
    """For images with label maps: the auxiliary head's share of the loss, and how test images are looked at."""

    PREFIX: ClassVar[str] = "segmentation"

    auxiliary_weight: Number = Field(default=0.4, ge=0, le=10, description="of the auxiliary head's loss")
    window: Whole = Field(
        default=0,
        ge=0,
        le=1 << 16,
        description="side of the windows that cover a test image; 0: the whole image at once",
    )
    overlap: Number = Field(default=1 / 3, ge=0, lt=1, description="share of a window that lies over the one before")
    flip: Flag = Field(default=False, description="look at the mirror image too")

    def __post_init__(self) -> None:
        try:
            View(self.window, self.overlap, self.flip)
        except ValueError as error:
            raise RecipeError(f"segmentation: {error}") from None


@raises_recipe_errors
@dataclass(frozen=True, config=FORBID)
class ModelSettings:
    """The network to convert: a name with pretrained, given or random weights, or a file that surgery wrote."""

    PREFIX: ClassVar[str] = "model"

    name: Text = Field(
        default="timm/resnet26", description="as for surgery.create: timm/NAME, torchvision/NAME, a builder"
    )
    kwargs: dict[Annotated[str, Strict()], Any] = Field(
        default_factory=dict, description="keyword arguments of its builder; num_classes is the dataset's by default"
    )
    pretrained: Flag = Field(
        default=False, description="begin with the published weights, from the cache or by a download"
    )
    weights: FileName | None = Field(
        default=None,
        description="begin with a plain checkpoint file of that network (.safetensors, .pth, .pt, .bin) in place of "
        "the download; its head is made anew where the number of classes differs, and baseline trains it",
    )
    checkpoint: FileName | None = Field(
        default=None, description="begin with a file of surgery.save, which knows name and kwargs itself"
    )

    def __post_init__(self) -> None:
        refuse_held_elsewhere("model.kwargs", self.kwargs)
        try:
            plain_arguments(self.kwargs)
        except SourceError as error:  # which begins with kwargs
            raise RecipeError(f"model.{error}") from None
        if self.weights and self.checkpoint:
            raise RecipeError(
                f"model.weights={self.weights!r} and model.checkpoint={self.checkpoint!r}: one of them is needed; "
                "weights is a plain file of weights, checkpoint one that surgery.save wrote"
            )


@raises_recipe_errors
@dataclass(frozen=True, config=FORBID)
class SurgerySettings:
    """Arguments of ``surgery.convert``."""

    PREFIX: ClassVar[str] = "surgery"

    method: MethodName = Field(
        default_factory=default_method, description="what the surgery puts in the place of a convolution"
    )
    zeta: Annotated[Whole, Field(ge=1, le=1 << 16)] | dict[str, Whole] | None = Field(
        default=None,
        description="channels of a subset: one number, or one by name pattern; default: the network's own ratio",
    )
    mode: Mode | None = Field(
        default=None, description="where: in place of squeezes, or before spatial convolutions; default: the method's"
    )
    calibrate: Whole = Field(
        default=0,
        ge=0,
        le=100_000_000,
        description="number of training images, without labels, for surgery.calibrate; 0: none",
    )
    images: Annotated[Whole, Field(ge=0, le=100_000_000)] | None = Field(
        default=None,
        description="number of training images that the method looks at, with their labels where it needs these; "
        "default: 1024, or all, for a method that needs some, else as many as calibrate says",
    )
    match: Flag | Literal["inside"] | None = Field(
        default=None,
        description="reorder channels first, where the method knows an order; default: where it is calibrated; "
        "inside: but for the feature maps that forward_features returns",
    )
    options: dict[Annotated[str, Strict()], Any] = Field(
        default_factory=dict, description="further arguments of surgery.convert: include, tau, macs, keep, …"
    )

    def __post_init__(self) -> None:
        refuse_held_elsewhere("surgery.options", self.options)


def refuse_held_elsewhere(group: str, values: dict[str, Any], like: str = "") -> None:
    """Raise RecipeError for an option that another key holds.

    Args:
        like: the group whose options these are; default: ``group``.
    """
    for name, instead in HELD_ELSEWHERE[like or group].items():
        if name in values:
            raise RecipeError(f"{group}.{name}: {instead}")


@raises_recipe_errors
@dataclass(frozen=True, config=FORBID)
class MimicSettings:
    """``surgery.mimic`` between calibration and fine-tuning: gradient steps towards the original, without labels."""

    PREFIX: ClassVar[str] = "mimic"

    steps: Whole = Field(default=0, ge=0, le=10_000_000, description="of the optimizer; 0: no mimicry")
    images: Annotated[Whole, Field(ge=8, le=100_000_000)] | None = Field(
        default=None, description="number of training images, without labels; default: as many as calibrate"
    )
    batch_size: Batch = Field(default=64, description="images of a step")
    lr: Annotated[Number, Field(gt=0, le=1000)] | None = Field(
        default=None, description="learning rate; default: searched for, by short trials"
    )
    feature_weight: Number = Field(
        default=1.0, ge=0, le=1e6, description="of the error of the map before pooling, beside the logits' divergence"
    )
    block_weight: Annotated[Number, Field(ge=0, le=1e6)] | None = Field(
        default=None,
        description="of the mean error of what the blocks around converted layers give; default: 24 with at least "
        "1,024 images, whose batches BatchNorms then normalise by, else 0",
    )
    crop: Number = Field(default=0.5, ge=0.05, le=1, description="least share of its area that a random crop has")
    hflip: Flag = Field(default=True, description="mirror half of the images")

    def options(self) -> dict[str, Any]:
        """Keyword arguments of ``surgery.mimic``."""
        names = ("steps", "batch_size", "lr", "feature_weight", "block_weight", "crop", "hflip")
        return {name: getattr(self, name) for name in names}


@raises_recipe_errors
@dataclass(frozen=True, config=FORBID)
class TrainSettings:
    """One training, of the baseline or of the converted network."""

    epochs: Whole = Field(
        default=10, ge=0, le=100_000, description="0: the network stays as it is (a baseline as loaded or initialised)"
    )
    batch_size: Batch | None = Field(
        default=None, description="images of a batch, for each process; default: data.batch_size"
    )
    accumulate: Whole = Field(default=1, ge=1, le=1 << 16, description="batches that make one step")
    optimizer: Optimizer = Field(default="adamw", description="timm's, by name")
    lr: Number = Field(default=1e-3, gt=0, le=1000, description="learning rate after warming up")
    lr_by_damage: Flag = Field(
        default=False,
        description="finetune: lr is the rate from scratch, multiplied by the square root of the share that surgery "
        "and calibration cost of the original's lead over guessing, in loss (0.05 to 1)",
    )
    weight_decay: Number = Field(default=0.05, ge=0, le=10, description="of weights; biases and norms are spared")
    decay_all: Flag = Field(default=False, description="let weight decay act on biases and norms too")
    dynamic_weight_decay: Number = Field(
        default=0.0,
        ge=0,
        le=1e6,
        description="of BatchNorms' scales, in place of weight decay: times the size of what a channel gives; 3 in the "
        "paper, 0: none",
    )
    betas: tuple[Share, Share] | None = Field(
        default=None, description="of Adam and its kin: decay of the mean and of the mean square; default: timm's"
    )
    scheduler: Scheduler = Field(
        default="cosine",
        description="of the learning rate, timm's, by name, or linear: down to 0 in a straight line after warming up",
    )
    power: Number = Field(default=0.9, ge=0, le=10, description="of the poly scheduler")
    warmup_epochs: Number = Field(
        default=1.0, ge=0, le=100_000, description="epochs, or a part of one, in which the learning rate rises"
    )
    smoothing: Number = Field(default=0.0, ge=0, lt=1, description="of labels")
    first_size: Annotated[Whole, Field(ge=LEAST_SIDE, le=100_000)] | None = Field(
        default=None,
        description="side of the training images in the first of several epochs, in pixels: it grows to "
        "data.image_size, which it has from two thirds of the epochs on; null, or a single epoch: always that",
    )
    mixup: Number = Field(default=0.0, ge=0, le=10, description="alpha of mixup; 0: none")
    ema_decay: Number = Field(
        default=0.0, ge=0, lt=1, description="of a moving average of the weights, then kept; 0: none"
    )
    clip_grad: Number = Field(default=0.0, ge=0, le=1e6, description="largest norm of the gradient; 0: any")
    save_minutes: Number = Field(
        default=10.0, ge=0, le=1e6, description="between states to go on from, besides each epoch's"
    )
    keep: Whole = Field(default=1, ge=1, le=1000, description="states that stay")
    keep_best: Flag = Field(default=False, description="finetune: write the best epoch's network to best.safetensors")
    distill_weight: Share = Field(
        default=0.0, description="finetune: share of the loss that matches the original's logits"
    )
    temperature: Number = Field(default=1.0, gt=0, le=1000, description="of the logits that are matched")
    block_weight: Number = Field(
        default=0.0,
        ge=0,
        le=1e6,
        description="finetune: added to the loss, times the error of the converted blocks' outputs as a share of their "
        "variance",
    )
    block_fade: Flag = Field(default=False, description="let block_weight fall from epoch to epoch, to 0 in the last")

    def check(self, name: str) -> None:
        """Raise RecipeError for what cannot be together, under the name of the group that holds it."""
        if self.epochs and self.warmup_epochs > self.epochs:
            raise RecipeError(
                f"{name}.warmup_epochs={self.warmup_epochs:g}: at most {name}.epochs={self.epochs} is needed"
            )
        if self.mixup and self.distill_weight == 1:
            raise RecipeError(f"{name}: mixup mixes labels, and distill_weight=1 uses none; set one of them to 0")
        if self.mixup and self.smoothing:
            raise RecipeError(f"{name}: mixup={self.mixup} would ignore smoothing={self.smoothing}; set one to 0")

    @property
    def distills(self) -> bool:
        """Whether a teacher is needed."""
        return self.distill_weight > 0 or self.block_weight > 0

    def size_in(self, epoch: int, whole: int) -> int:
        """Side in pixels that training images have in an epoch, counted from 0, of ``whole`` at the end.

        Progressive resizing, as speedruns have it (Howard, fast.ai's DAWNBench entry, 2018). Sides between
        the first and the last are multiples of 4 pixels, of large images 32, since every side costs a search for the
        fastest convolutions.
        """
        if self.first_size is None or self.epochs < 2:
            return whole
        share = min(1.0, epoch / max(1, round(2 * self.epochs / 3)))
        multiple = 4 if whole < 112 else 32
        size = int(self.first_size + share * (whole - self.first_size))
        return whole if share == 1 else max(self.first_size, size // multiple * multiple)

    def block_weight_in(self, epoch: int) -> float:
        """``block_weight`` as it is in an epoch, counted from 0."""
        if not self.block_fade or self.epochs < 2:
            return self.block_weight
        return self.block_weight * (1 - epoch / (self.epochs - 1))
