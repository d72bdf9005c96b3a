"""Pictures of what a converted network does: ``python -m surgery explain``."""

from surgery.explanation.explaining import Explanation, ExplanationSettings, explain

__all__ = ["Explanation", "ExplanationSettings", "explain"]
