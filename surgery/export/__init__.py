"""Models as files for other runtimes: ONNX, ``torch.export`` programs, AOTInductor packages."""

from surgery.export.exporting import export

__all__ = ["export"]
