"""Layers, one nn.Module per file, each usable on its own."""

from surgery.layers.pix import PiX
from surgery.layers.squeezed_conv import SqueezedConv2d
from surgery.layers.surgery_layer import OpCost, SurgeryLayer

__all__ = ["OpCost", "PiX", "SqueezedConv2d", "SurgeryLayer"]
