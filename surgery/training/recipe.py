"""Recipes: nested settings read from YAML and ``key=value`` arguments, checked before anything starts."""

import re
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, Strict
from pydantic.dataclasses import dataclass

from surgery.core.user_modules import import_user_modules
from surgery.planning.plan import SHARES
from surgery.training.recipe_errors import RecipeError, check_key, raises_recipe_errors
from surgery.training.recipe_sections import (
    FORBID,
    DataSettings,
    MimicSettings,
    ModelSettings,
    SegmentationSettings,
    SurgerySettings,
    TrainSettings,
    refuse_held_elsewhere,
)
from surgery.training.recipe_text import apply_override, read_recipe
from surgery.training.recipe_values import FileName, Flag, Number, Precision, Text, Tracker, Whole

VARIANT = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,99}")  # its cells are folders of that name
TAKEN = ("baseline", "control")  # names of other cells

__all__ = ["DataSettings", "Recipe", "RecipeError", "TrainSettings", "check_key", "load_recipe"]


@raises_recipe_errors
@dataclass(frozen=True, config=FORBID)
class Recipe:
    """A whole job. The original is ``model``, trained by ``baseline`` first where that has epochs."""

    output: FileName = Field(default="runs/quickstart", description="the job's folder")
    seed: Whole = Field(default=0, ge=0, le=(1 << 31) - 1, description="of all that is random")
    seeds: Whole = Field(
        default=1,
        ge=1,
        le=1000,
        description="repeat calibration and fine-tuning from seed, seed + 1, …: mean ± deviation",
    )
    control: Flag = Field(default=False, description="fine-tune the unconverted network beside, in just the same way")
    precision: Precision = Field(
        default="no",
        description="of training; auto: bf16 where there are instructions for it, else fp16 on CUDA, no elsewhere",
    )
    channels_last: Flag = Field(
        default=False, description="memory format of networks and images (faster on most machines)"
    )
    threads: Whole = Field(default=0, ge=0, le=1024, description="torch's on the CPU; 0: as torch finds")
    sync_bn: Flag = Field(default=False, description="let the GPUs of a job share BatchNorm's statistics")
    compile: Flag = Field(default=False, description="train through torch.compile")
    checkpoint_activations: Flag = Field(
        default=False, description="compute activations twice instead of keeping them (timm's grad_checkpointing)"
    )
    find_batch_size: Flag = Field(
        default=False, description="halve a batch that does not fit at a training's beginning, and double accumulate"
    )
    imports: tuple[Text, ...] = Field(
        default=(), description="modules of yours that register builders or methods; imported when the recipe is read"
    )
    track: Tracker | None = Field(default=None, description="where to report, besides log.csv")
    variants: dict[Annotated[str, Strict()], dict[Annotated[str, Strict()], Any]] = Field(
        default_factory=dict,
        description="ways to convert that `compare` runs beside each other: by name, what differs from surgery.options",
    )
    published: dict[Annotated[str, Strict()], Number] = Field(
        default_factory=dict, description="of variants by name, papers' accuracies in percent, to be printed beside"
    )
    fresh: Flag = Field(default=False, description="start over instead of going on from the last state")
    data: DataSettings = Field(default_factory=DataSettings)
    model: ModelSettings = Field(default_factory=ModelSettings)
    baseline: TrainSettings = Field(default_factory=lambda: TrainSettings(epochs=0))
    surgery: SurgerySettings = Field(default_factory=SurgerySettings)
    mimic: MimicSettings = Field(default_factory=MimicSettings)
    finetune: TrainSettings = Field(default_factory=TrainSettings)
    segmentation: SegmentationSettings = Field(default_factory=SegmentationSettings)

    def __post_init__(self) -> None:
        self.baseline.check("baseline")
        self.finetune.check("finetune")
        for key in ("distill_weight", "block_weight"):
            if getattr(self.baseline, key):
                raise RecipeError(f"baseline.{key}: the baseline has no teacher; 0 is needed")
        if self.baseline.lr_by_damage:
            raise RecipeError("baseline.lr_by_damage=true: nothing was converted before the baseline; false is needed")
        if self.baseline.keep_best:
            raise RecipeError("baseline.keep_best=true: best.safetensors is of the fine-tuning; false is needed")
        if self.compile and self.finetune.block_weight:
            raise RecipeError(
                "compile=true: what blocks give cannot be seen in a compiled network; finetune.block_weight=0"
            )
        decayed = next((n for n in ("baseline", "finetune") if getattr(self, n).dynamic_weight_decay), None)
        if self.compile and decayed:
            raise RecipeError(
                f"compile=true: what channels give cannot be seen in a compiled network; "
                f"{decayed}.dynamic_weight_decay=0"
            )
        if self.data.has_maps:
            self._check_label_maps()
        self._check_sizes()
        for name, options in self.variants.items():
            if not VARIANT.fullmatch(name) or name.lower() in TAKEN:
                raise RecipeError(
                    f"variants.{name!r:.120}: a name of 1 to 100 of A-Z, a-z, 0-9, '_', '-' and '.', not beginning "
                    f"with '.', other than {' and '.join(TAKEN)}, is needed"
                )
            refuse_held_elsewhere(f"variants.{name}", options, "surgery.options")
        for name in self.published:
            if name not in self.variants:
                raise RecipeError(f"published.{name}: a name of variants ({', '.join(self.variants)}) is needed")

    def _check_sizes(self) -> None:
        side = self.data.image_size
        for name, settings in (("baseline", self.baseline), ("finetune", self.finetune)):
            if settings.first_size is not None and settings.first_size >= side:
                raise RecipeError(
                    f"{name}.first_size={settings.first_size}: less than data.image_size={side} is needed"
                )
            if settings.first_size is not None and self.find_batch_size:
                raise RecipeError(
                    f"find_batch_size=true: a batch that fits may not once images have grown from {name}.first_size="
                    f"{settings.first_size}; false, or {name}.first_size=null, is needed"
                )

    def _check_label_maps(self) -> None:
        for name, settings in (("baseline", self.baseline), ("finetune", self.finetune)):
            if settings.mixup:
                raise RecipeError(f"{name}.mixup={settings.mixup}: not for label maps; 0 is needed")
            if settings.first_size is not None:
                raise RecipeError(f"{name}.first_size={settings.first_size}: not for label maps; null is needed")
        if self.data.saliency and (self.segmentation.window or self.segmentation.flip):
            raise RecipeError(
                f"segmentation.window={self.segmentation.window}, segmentation.flip={self.segmentation.flip}: "
                f"data.name={self.data.name} is looked at whole, once; 0 and false are needed"
            )

    @property
    def from_scratch(self) -> bool:
        """Whether what is converted has never been trained."""
        model = self.model
        return not (model.checkpoint or model.weights or model.pretrained or self.baseline.epochs)

    @property
    def surgery_arguments(self) -> dict[str, Any]:
        """Of ``surgery.plan`` and ``surgery.convert``, but for the method."""
        settings, side = self.surgery, self.data.image_size
        named = {name: value for name in ("zeta", "mode") if (value := getattr(settings, name)) is not None}
        return {"input_size": (3, side, side), **named, **settings.options}

    @property
    def title(self) -> str:
        """Of a plot: model, dataset and conversion."""
        settings, model = self.surgery, self.model
        ratio = "" if settings.zeta is None else f", zeta = {settings.zeta}"
        ratio += "".join(f", {name} = {settings.options[name]}" for name in SHARES if name in settings.options)
        mode = "" if settings.mode in (None, "squeeze") else f", mode {settings.mode}"
        return f"{model.checkpoint or model.name} on {self.data.name}, converted to {settings.method}{mode}{ratio}"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def load_recipe(path: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read a recipe file and apply ``key=value`` arguments (dotted keys, YAML values: ``finetune.lr=0.01``).

    Raises:
        OSError: no such file, or none that can be read.
        RecipeError: naming the key, its value and what would be accepted.
        UserModuleError: one of its ``imports`` cannot be imported.
    """
    values = read_recipe(path)
    for override in overrides:
        apply_override(values, override)
    imports = values.get("imports", ())
    if isinstance(imports, list | tuple) and all(isinstance(name, str) for name in imports):
        import_user_modules(imports)  # before the keys are checked: they may name what these modules register
    return Recipe(**values)
