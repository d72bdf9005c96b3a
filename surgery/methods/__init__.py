"""Methods of surgery, one file each."""

from surgery.methods.registry import Method, configure, method_named, methods, register

__all__ = ["Method", "configure", "method_named", "methods", "register"]
