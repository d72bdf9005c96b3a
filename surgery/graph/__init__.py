"""Models as torch.fx graphs with shapes; nothing above this package touches fx details of its own making."""

from surgery.graph.recorder import ModelGraph, record

__all__ = ["ModelGraph", "record"]
