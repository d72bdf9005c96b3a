"""The types of a recipe's values: what a key may be, its range, the names that it takes."""

import dataclasses
import os
from collections.abc import Callable, Iterable
from typing import Annotated, Any

from pydantic import AfterValidator, AllowInfNan, BeforeValidator, Field, GetCoreSchemaHandler, Strict
from pydantic_core import CoreSchema, core_schema
from timm.optim import list_optimizers

from surgery.methods.planners.squeeze_options import MODES
from surgery.planning.registry import methods

TRACKERS = ("tensorboard", "wandb", "mlflow")
PRECISIONS = ("auto", "no", "fp16", "bf16")
SCHEDULERS = ("cosine", "tanh", "step", "multistep", "poly", "linear")  # timm's that need nothing but the epochs
INTERPOLATIONS = ("bilinear", "bicubic")
SECOND_ORDER = ("adahessian",)  # needs a backward pass through the backward pass, which the trainer does not make
LISTED = "timm.optim.list_optimizers()"


def _number(value: object) -> object:
    """A number in quotes is one."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _named(value: object) -> object:
    """YAML reads ``no`` as false."""
    return "no" if value is False else value


def _not_blank(value: str) -> str:
    if not value.strip():
        raise ValueError("blank")
    return value


@dataclasses.dataclass(frozen=True)
class OneOf:
    """Says of a text that it is one of some names, which may only be known later."""

    listed: Callable[[], Iterable[str]]
    source: str = ""  # where many names are listed

    @property
    def names(self) -> list[str]:
        return list(self.listed())

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        def check(value: str) -> str:
            if value not in self.names:
                raise ValueError("none of the names")
            return value

        return core_schema.no_info_after_validator_function(check, handler(source))


Whole = Annotated[int, Strict()]
Number = Annotated[float, BeforeValidator(_number), Strict(), AllowInfNan(False)]
Share = Annotated[Number, Field(ge=0, le=1)]
Scale = Annotated[Number, Field(gt=0, le=16)]
Deviation = Annotated[Number, Field(gt=0, le=1)]
Flag = Annotated[bool, Strict()]
Text = Annotated[str, Strict(), Field(min_length=1, max_length=4096), AfterValidator(_not_blank)]
FileName = Annotated[Text, AfterValidator(os.path.expanduser)]
Batch = Annotated[Whole, Field(ge=2, le=1 << 16)]
Optimizer = Annotated[str, OneOf(lambda: [name for name in list_optimizers() if name not in SECOND_ORDER], LISTED)]
Scheduler = Annotated[str, OneOf(lambda: SCHEDULERS)]
Precision = Annotated[str, BeforeValidator(_named), OneOf(lambda: PRECISIONS)]
Tracker = Annotated[str, OneOf(lambda: TRACKERS)]
Interpolation = Annotated[str, OneOf(lambda: INTERPOLATIONS)]
MethodName = Annotated[str, OneOf(methods)]
Mode = Annotated[str, OneOf(lambda: MODES)]
