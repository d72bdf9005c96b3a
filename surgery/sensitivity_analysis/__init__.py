"""What every change would cost and save, measured one at a time."""

from surgery.sensitivity_analysis.measure import SensitivitySpec, sensitivity
from surgery.sensitivity_analysis.result import Sensitivity, SensitivityRow

__all__ = ["Sensitivity", "SensitivityRow", "SensitivitySpec", "sensitivity"]
