"""Models as one safetensors file, and how they are built again from it."""

from surgery.checkpoint.model_file import load, read, save

__all__ = ["load", "read", "save"]
