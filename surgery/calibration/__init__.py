"""Recovery in closed form: what a few unlabelled images can give back before any training."""

from surgery.calibration.calibrating import calibrate
from surgery.calibration.report import Report

__all__ = ["Report", "calibrate"]
