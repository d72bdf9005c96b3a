"""Model surgery for pretrained ConvNets: plan, convert, count, save, load, export."""

from surgery import checkpoint, cifar_resnet, errors, pspnet
from surgery.calibration import calibrate, synthetic_images
from surgery.checkpoint import load, save
from surgery.convert import convert
from surgery.cost import Cost, cost
from surgery.export import export
from surgery.inference import optimize_for_inference
from surgery.matching import match
from surgery.plan import Plan, plan
from surgery.source import Source, create, register_builder

__version__ = "0.1.0"
__all__ = [
    "Cost",
    "Plan",
    "Source",
    "calibrate",
    "checkpoint",
    "cifar_resnet",
    "convert",
    "cost",
    "create",
    "errors",
    "export",
    "load",
    "match",
    "optimize_for_inference",
    "plan",
    "pspnet",
    "register_builder",
    "save",
    "synthetic_images",
]
