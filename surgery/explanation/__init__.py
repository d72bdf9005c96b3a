"""Pictures of what a converted network does: ``python -m surgery explain``."""

from surgery.explanation.explaining import ExplanationSettings, explain
from surgery.explanation.report import Explanation

__all__ = ["Explanation", "ExplanationSettings", "explain"]
