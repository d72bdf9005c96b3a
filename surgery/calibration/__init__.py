"""Recovery in closed form: what a few unlabelled images can give back before any training."""

from surgery.calibration.calibrating import calibrate
from surgery.calibration.report import Report
from surgery.calibration.synthetic import synthetic_images

__all__ = ["Report", "calibrate", "synthetic_images"]
