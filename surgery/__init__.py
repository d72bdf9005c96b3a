"""Model surgery for pretrained ConvNets: plan, convert, count, save, load."""

from surgery.convert import convert
from surgery.plan import Plan, plan

__all__ = ["Plan", "convert", "plan"]
