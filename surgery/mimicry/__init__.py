"""Recovery by gradient from unlabelled images: the converted network mimics the original."""

from surgery.mimicry.mimic import mimic
from surgery.mimicry.report import MimicryReport
from surgery.mimicry.settings import MimicrySettings

__all__ = ["MimicryReport", "MimicrySettings", "mimic"]
