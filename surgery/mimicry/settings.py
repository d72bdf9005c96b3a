"""How a network mimics another."""

import math
from dataclasses import dataclass, replace

from surgery.core.errors import is_whole

MANY = 1024  # images from which the statistics of their batches are worth normalising by
RATES = (3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)


@dataclass(frozen=True)
class MimicrySettings:
    """How a network mimics another.

    Attributes:
        steps: of the optimizer (SGD with Nesterov momentum); 0 leaves the network as it is.
        batch_size: images of a step.
        lr: learning rate after a short rise; it falls to 0 in a straight line. None: of several, the one that does best
            on the held-out images after ``trial_steps`` steps each, of which every trial has a whole such schedule.
        trial_steps: of each rate that is tried; None: a tenth of ``steps``, at least 20.
        feature_weight: of the squared error of the feature map before pooling, as a share of its variance, beside the
            divergence of the logits.
        batch_statistics: whether BatchNorms normalise by the batch while learning, as in any training, and their
            running statistics follow; else they stay as calibration has set them, which permits lower rates only and
            spoils nothing at first. None: with at least 1,024 images to learn from, besides
            those that judge.
        block_weight: of the same error, its mean over the smallest modules around each converted layer whose output has
            one shape in both networks. None: 24 with ``batch_statistics``, else 0.
        crop: least share of its area that a random crop of an image has, enlarged to the whole again; 1: no crop.
        hflip: whether half of the images are mirrored.
        ema_decay: of the moving average of the weights that is judged and kept; 0: none.
        holdout: share of the images that judge, and are not trained on.
        checks: how often the held-out images judge; the best weights are kept.
        patience: checks in a row without a better one after which it stops.
        seed: of the order of images and of their augmentation.

    Raises:
        ValueError: naming the setting, its value and what would be accepted.
    """

    steps: int = 400
    batch_size: int = 64
    lr: float | None = None
    trial_steps: int | None = None
    feature_weight: float = 1.0
    batch_statistics: bool | None = None
    block_weight: float | None = None
    crop: float = 0.5
    hflip: bool = True
    ema_decay: float = 0.95
    holdout: float = 0.15
    checks: int = 12
    patience: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("steps", 0), ("batch_size", 2), ("trial_steps", 1), ("checks", 1), ("patience", 1)):
            unset = name == "trial_steps" and self.trial_steps is None
            if not unset and not is_whole(getattr(self, name), least):
                raise ValueError(f"{name}={getattr(self, name)!r}: a whole number >= {least} is needed")
        for name, low, high in (("crop", 0.05, 1.0), ("ema_decay", 0.0, 0.9999), ("holdout", 0.01, 0.9)):
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name}={getattr(self, name)!r}: a number from {low} to {high} is needed")
        for name in ("feature_weight", "block_weight"):
            weight = getattr(self, name)
            if weight is not None and not (math.isfinite(weight) and weight >= 0):
                raise ValueError(f"{name}={weight!r}: 0 or a positive number is needed")
        if self.lr is not None and not (math.isfinite(self.lr) and self.lr > 0):
            raise ValueError(f"lr={self.lr!r}: a positive number, or None to search for one, is needed")

    def for_images(self, count: int) -> "MimicrySettings":
        """The same with what is right for so many images in the place of None."""
        batch = count >= MANY if self.batch_statistics is None else self.batch_statistics
        weight = (24.0 if batch else 0.0) if self.block_weight is None else self.block_weight
        return replace(self, batch_statistics=batch, block_weight=weight)

    @property
    def first_rate(self) -> float:
        """The learning rate that the search begins with."""
        return 1e-2 if self.batch_statistics else 1e-3

    @property
    def steps_of_trial(self) -> int:
        """How many steps the trial of a rate takes."""
        return self.trial_steps or max(20, self.steps // 10)
