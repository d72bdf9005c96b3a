"""Layers, one nn.Module per file, each usable on its own."""

from surgery.layers.pix import PiX
from surgery.layers.squeezed_conv import SqueezedConv2d

__all__ = ["PiX", "SqueezedConv2d"]
