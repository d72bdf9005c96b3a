"""How a network mimics another."""

import math
from dataclasses import dataclass

from surgery.core.errors import is_whole

RATES = (3e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3)


@dataclass(frozen=True)
class MimicrySettings:
    """How a network mimics another.

    Attributes:
        steps: of the optimizer (Adam); 0 leaves the network as it is.
        batch_size: images of a step.
        lr: learning rate at first; it falls to 0 along a half cosine. None: of several, the one that does best on the
            held-out images after ``trial_steps`` steps each.
        trial_steps: of each rate that is tried.
        feature_weight: of the squared error of the feature map before pooling, as a share of its variance, beside the
            divergence of the logits.
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
    batch_size: int = 32
    lr: float | None = None
    trial_steps: int = 12
    feature_weight: float = 1.0
    crop: float = 0.5
    hflip: bool = True
    ema_decay: float = 0.95
    holdout: float = 0.15
    checks: int = 12
    patience: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("steps", 0), ("batch_size", 1), ("trial_steps", 1), ("checks", 1), ("patience", 1)):
            if not is_whole(getattr(self, name), least):
                raise ValueError(f"{name}={getattr(self, name)!r}: a whole number >= {least} is needed")
        for name, low, high in (("crop", 0.05, 1.0), ("ema_decay", 0.0, 0.9999), ("holdout", 0.01, 0.9)):
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name}={getattr(self, name)!r}: a number from {low} to {high} is needed")
        if not (math.isfinite(self.feature_weight) and self.feature_weight >= 0):
            raise ValueError(f"feature_weight={self.feature_weight!r}: 0 or a positive number is needed")
        if self.lr is not None and not (math.isfinite(self.lr) and self.lr > 0):
            raise ValueError(f"lr={self.lr!r}: a positive number, or None to search for one, is needed")
