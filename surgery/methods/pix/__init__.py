"""Pick-or-Mix: the layer, its operators, the method."""

from surgery.methods.pix.layer import PiX
from surgery.methods.pix.method import PiXConfig
from surgery.methods.pix.schema_1 import transforms_of as _  # registers itself

__all__ = ["PiX", "PiXConfig"]
