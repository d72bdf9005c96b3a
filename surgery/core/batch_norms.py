"""Which modules normalise by the statistics of batches."""

from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from surgery.core.surgery_layer import SurgeryLayer


def is_batch_norm(module: nn.Module) -> bool:
    """Whether a module is a BatchNorm, or a method's layer that is one for several maps: with ``weight``, ``bias``,
    ``running_mean``, ``running_var``, ``num_batches_tracked`` and ``momentum``.
    """
    return isinstance(module, _BatchNorm) or (isinstance(module, SurgeryLayer) and module.without_norm() is not None)


def batch_norms_of(model: nn.Module) -> dict[str, Any]:
    """Those of a network, by name."""
    return {name: module for name, module in model.named_modules() if is_batch_norm(module)}
