"""Methods of surgery: a file or a folder each."""

from surgery.planning.registry import Method, configure, method_named, methods, register

__all__ = ["Method", "configure", "method_named", "methods", "register"]
