"""Pick-or-Mix: the layer, its operators, the method."""

from surgery.methods.pix import schema_1 as schema_1  # it registers itself
from surgery.methods.pix.layer import PiX
from surgery.methods.pix.method import PiXConfig

__all__ = ["PiX", "PiXConfig"]
