"""``octave``: convolutions whose channels lie on maps of several resolutions (gOctConv)."""

from surgery.methods.octave.goctconv import GOctConv
from surgery.methods.octave.method import Octave, OctaveConfig
from surgery.methods.octave.scales import ConvShape, Scales

__all__ = ["ConvShape", "GOctConv", "Octave", "OctaveConfig", "Scales"]
