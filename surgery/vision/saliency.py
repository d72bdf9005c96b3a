"""How saliency maps are judged: max F-measure and its companions by pysodmetrics, and what no network at all reaches.

A map and its mask are compared as published tools do it: 8-bit grey each, the mask salient above 128, the map stretched
to 0 … 1 first. F-measure: Achanta et al., Frequency-tuned salient region detection (CVPR 2009), β² = 0.3. MAE: Perazzi
et al., Saliency filters (CVPR 2012). S-measure: Fan et al., Structure-measure (ICCV 2017). E-measure: Fan et al.,
Enhanced-alignment measure (IJCAI 2018).
"""

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from surgery.core.extras import check_extra

BETA_SQUARED = 0.3  # by which precision counts more than recall
THRESHOLDS = 256
SINGLE = 4  # numbers of image_scores before its curves


@dataclass(frozen=True)
class SaliencyFigures:
    """Means over images, in percent; of F and E at thresholds the best mean of all, or the mean of all.

    Attributes:
        max_f: F-measure at the threshold, one for all images, where its mean is largest.
        adaptive_f, adaptive_e: at twice the mean of each map.
        mae: mean absolute error.
        s: structure measure, of the images that have one (an object in the last row or column alone has none).
        mean_e: enhanced-alignment measure, the mean over all thresholds.
    """

    max_f: float
    adaptive_f: float
    mae: float
    s: float
    mean_e: float
    adaptive_e: float

    def by_name(self) -> dict[str, float]:
        """The figures under the names that tables have."""
        return {
            "max F": self.max_f,
            "adaptive F": self.adaptive_f,
            "MAE": self.mae,
            "S": self.s,
            "mean E": self.mean_e,
            "adaptive E": self.adaptive_e,
        }


def f_curve(prediction: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """F-measure of one map at each of 256 thresholds, the highest first: float64 (256,), from 0 to 1.

    Args:
        prediction, mask: uint8 (H, W).

    Raises:
        ValueError: their sizes differ.
        MissingPackageError: pysodmetrics is not installed.
    """
    return _f_measures(prediction, mask, adaptive=False)["dynamic"]


def image_scores(prediction: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """All that :func:`figures` needs of one image: float64 (516,), from 0 to 1, S-measure perhaps NaN.

    Args, Raises: as :func:`f_curve`.
    """
    f = _f_measures(prediction, mask, adaptive=True)
    from py_sod_metrics import MAE, Emeasure, Smeasure

    results: dict[str, Any] = {}
    with warnings.catch_warnings(), np.errstate(invalid="ignore"):
        warnings.filterwarnings("ignore", "Mean of empty slice", RuntimeWarning)  # NaN, as figures() expects
        for metric in (MAE(), Smeasure(), Emeasure()):
            metric.step(prediction, mask)
            results |= metric.get_results()
    e = results["em"]
    return np.concatenate([[results["mae"], results["sm"], f["adaptive"], e["adp"]], f["dynamic"], e["curve"]])


def _f_measures(prediction: np.ndarray, mask: np.ndarray, adaptive: bool) -> dict[str, np.ndarray]:
    check_extra("train", "judging saliency maps", ("py_sod_metrics",))
    from py_sod_metrics import FmeasureHandler, FmeasureV2

    metric = FmeasureV2({"f": FmeasureHandler(beta=BETA_SQUARED, with_dynamic=True, with_adaptive=adaptive)})
    metric.step(prediction, mask)
    return metric.get_results()["f"]


def max_f(curves: Sequence[np.ndarray] | np.ndarray) -> float:
    """The largest value, in percent, of the mean over images of what :func:`f_curve` gave."""
    return 100 * float(np.mean(curves, 0).max())


def figures(scores: Sequence[np.ndarray] | np.ndarray) -> SaliencyFigures:
    """Of what :func:`image_scores` gave for each image."""
    rows = 100 * np.asarray(scores)
    curves = rows[:, SINGLE : SINGLE + THRESHOLDS].mean(0), rows[:, SINGLE + THRESHOLDS :].mean(0)
    defined = rows[~np.isnan(rows[:, 1]), 1]
    mae, adaptive_f, adaptive_e = (float(rows[:, column].mean()) for column in (0, 2, 3))
    s = float(defined.mean()) if len(defined) else float("nan")
    return SaliencyFigures(float(curves[0].max()), adaptive_f, mae, s, float(curves[1].mean()), adaptive_e)


def mean_mask(masks: Iterable[np.ndarray], side: int) -> np.ndarray:
    """The mean of masks, resized to a square: where objects mostly are. It needs no image, and is a network's control.

    Args:
        masks: uint8 (H, W) each, of any sizes; at least one.
        side: of the square, in pixels.

    Returns:
        uint8 (side, side), stretched so that the largest value is 255.
    """
    total, count = np.zeros((side, side)), 0
    for mask in masks:
        total += _resized(mask, (side, side))
        count += 1
    if not count:
        raise ValueError("no masks: at least one is needed for a mean")
    return np.rint(255 * total / max(1.0, total.max())).astype(np.uint8)


def constant_figures(prediction: np.ndarray, masks: Iterable[np.ndarray]) -> SaliencyFigures:
    """Figures of one map as the prediction for every image, resized to each one's size (bilinear).

    Args:
        prediction: uint8 (h, w).
        masks: uint8 (H, W) each; at least one.
    """
    scores = [image_scores(_resized(prediction, mask.shape), mask) for mask in masks]
    return figures(scores)


def _resized(grey: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """A grey image at a size (H, W)."""
    height, width = size
    return np.asarray(Image.fromarray(grey).resize((width, height), Image.Resampling.BILINEAR))
