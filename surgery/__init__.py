"""Model surgery for pretrained networks: plan, convert, count, save, load, export."""

from surgery import checkpoint
from surgery.calibration import calibrate, synthetic_images
from surgery.checkpoint import load, save
from surgery.checkpoint.source import Source, create, register_builder
from surgery.convert import convert, match
from surgery.core import errors
from surgery.deploy.export import export
from surgery.deploy.inference import optimize_for_inference
from surgery.mimicry import mimic
from surgery.models import cifar_resnet, csnet, pspnet
from surgery.planning.cost import Cost, cost
from surgery.planning.plan import Plan, plan
from surgery.sensitivity_analysis import Sensitivity, sensitivity

__version__ = "0.1.0"
__all__ = [
    "Cost",
    "Plan",
    "Sensitivity",
    "Source",
    "calibrate",
    "checkpoint",
    "cifar_resnet",
    "convert",
    "cost",
    "create",
    "csnet",
    "errors",
    "export",
    "load",
    "match",
    "mimic",
    "optimize_for_inference",
    "plan",
    "pspnet",
    "register_builder",
    "save",
    "sensitivity",
    "synthetic_images",
]
