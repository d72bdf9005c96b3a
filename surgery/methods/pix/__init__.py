"""Pick-or-Mix: the layer, its operators, the method."""

from surgery.methods.pix.layer import PiX
from surgery.methods.pix.method import PiXConfig

__all__ = ["PiX", "PiXConfig"]
