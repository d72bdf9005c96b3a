"""What every change would cost and save, measured one at a time."""

from surgery.sensitivity.measure import SensitivitySpec, sensitivity
from surgery.sensitivity.result import Sensitivity, SensitivityRow

__all__ = ["Sensitivity", "SensitivityRow", "SensitivitySpec", "sensitivity"]
