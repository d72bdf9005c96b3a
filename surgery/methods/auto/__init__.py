"""The best mixture of methods at a budget, measured."""

from surgery.methods.auto.method import Auto, AutoConfig

__all__ = ["Auto", "AutoConfig"]
