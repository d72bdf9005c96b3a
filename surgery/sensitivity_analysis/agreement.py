"""How far a network's answers are from the original's, and from the labels where there are some."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from surgery.graph.trees import tensors_in


@dataclass(frozen=True)
class Agreement:
    """Means over images (over pixels, where maps are given).

    Attributes:
        kl: Kullback-Leibler divergence of the answer from the original's, in nats.
        same: share of the images on which both hold the same class for the likeliest.
        accuracy: share of the images whose label is held for the likeliest; None without labels.
    """

    kl: float
    same: float
    accuracy: float | None = None


def logits_of(output: Any) -> Tensor:
    """What a network answers, (N, classes, …), float32: the first tensor that it gives.

    Raises:
        ValueError: it gives none with classes along its second dimension.
    """
    tensor = next(tensors_in(output), None)
    if tensor is None or tensor.ndim < 2 or not tensor.is_floating_point():
        shown = "no tensor" if tensor is None else f"{tensor.dtype} of shape {tuple(tensor.shape)}"
        raise ValueError(f"the network gives {shown}: logits (N, classes) or (N, classes, H, W) are needed")
    return tensor.detach().float()


def agreement(answers: Sequence[Tensor], originals: Sequence[Tensor], labels: Tensor | None = None) -> Agreement:
    """Compare answers (N, classes, …), batch after batch, with the original's.

    Args:
        labels: (N,) or (N, H, W) int64, of all batches together.
    """
    answer, original = torch.cat(list(answers)).cpu(), torch.cat(list(originals)).cpu()
    target = F.log_softmax(original, 1)
    divergence = F.kl_div(F.log_softmax(answer, 1), target, reduction="none", log_target=True).sum(1)
    guess = answer.argmax(1)
    accuracy = None if labels is None else float((guess == labels).double().mean())
    return Agreement(float(divergence.mean()), float((guess == original.argmax(1)).double().mean()), accuracy)
