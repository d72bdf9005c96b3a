"""What a pruning left: channels of layers, and their shares in the variance of what reads them."""

import numpy as np
from torch import Tensor, nn
from tqdm import tqdm

from surgery.core.checked_model import first_weight
from surgery.graph import record
from surgery.graph.coupling import couple
from surgery.methods.planners.pruning.sfvr import sfvr
from surgery.transforms.history import history
from surgery.transforms.narrow import Narrow


def narrowed_layers(model: nn.Module) -> set[str]:
    """Names of the modules that surgery made give fewer channels."""
    narrowings = (change for change in history(model) if isinstance(change, Narrow))
    return {name for change in narrowings for name, (_, out) in change.widths.items() if out is not None}


def widths(before: nn.Module, after: nn.Module) -> list[tuple[str, int, int]]:
    """(name, output channels before, after) of the narrowed layers with filters, in the order of the model."""
    names, was = narrowed_layers(after), dict(before.named_modules())
    rows = []
    for name, module in after.named_modules():
        own, old = (getattr(layer, "weight", None) for layer in (module, was.get(name)))
        if name in names and isinstance(own, Tensor) and isinstance(old, Tensor) and min(own.ndim, old.ndim) > 1:
            rows.append((name, int(old.shape[0]), int(own.shape[0])))
    return rows


def channel_scores(model: nn.Module, images: Tensor, batch_size: int) -> np.ndarray:
    """SFVR of every class of channels that can go, measured on images (N, C, H, W); those that are 0 left out."""
    coupling = couple(record(model, tuple(images.shape[1:])))
    batches = images.to(first_weight(model)).split(batch_size)
    scores = sfvr(model, coupling, tqdm(batches, "SFVR", unit="batch", leave=False))
    return scores[scores > 0]
