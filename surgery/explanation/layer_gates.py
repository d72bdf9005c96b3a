"""What surgery layers decide for a set of images: values of their gates and states, and statistics of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from surgery.core.surgery_layer import SurgeryLayer
from surgery.explanation.surgery_calls import watch_layers

LOW, HIGH = 0.02, 0.98  # a gate in [0, 1] is saturated below and above
QUANTILES = (0.05, 0.5, 0.95)


@dataclass(frozen=True)
class LayerGates:
    """One layer's gates on all images.

    Attributes:
        values: (N, C) float32.
        states: by name, (N, C) bool.
    """

    name: str
    values: Tensor
    states: dict[str, Tensor]

    @property
    def shares(self) -> dict[str, float]:
        """Of images and channels, by state."""
        return {state: float(mask.float().mean()) for state, mask in self.states.items()}

    @property
    def dead(self) -> float | None:
        """Share of the channels that are in one state on all images; None for a layer without states."""
        if not self.states:
            return None
        kinds = torch.stack(list(self.states.values()))
        return float((kinds == kinds[:, :1]).all(1).all(0).float().mean())

    @property
    def saturated(self) -> float | None:
        """Share of the values below ``LOW`` or above ``HIGH``; None for gates that exceed 1."""
        if float(self.values.max()) > 1:
            return None
        return float(((self.values < LOW) | (self.values > HIGH)).float().mean())

    def class_means(self, labels: Sequence[str]) -> dict[str, Tensor]:
        """(C,) by class."""
        names = sorted(set(labels) - {""})
        return {name: self.values[_rows(labels, name)].mean(0) for name in names}

    def between_classes(self, labels: Sequence[str]) -> Tensor | None:
        """Variance (C,) of the means of classes, each with the weight of its images.

        None for one class, or fewer than two images for each: their means would differ by chance.
        """
        means, labelled = self.class_means(labels), [label for label in labels if label]
        if len(means) < 2 or len(labelled) < 2 * len(means):
            return None
        return torch.stack([means[label] for label in labelled]).var(0, correction=0)

    def spread_by_channel(self, labels: Sequence[str]) -> Tensor | None:
        """Variance (C,) of the means of classes ÷ variance over all images, 0 for a channel that never changes."""
        between = self.between_classes(labels)
        if between is None:
            return None
        labelled = self.values[[bool(label) for label in labels]]
        return (between / labelled.var(0, correction=0).clamp_min(1e-12)).clamp_max(1)

    def spread_over_classes(self, labels: Sequence[str]) -> float | None:
        """Mean over the channels of :meth:`spread_by_channel`."""
        spread = self.spread_by_channel(labels)
        return None if spread is None else float(spread.mean())

    def kept_by_class(self, labels: Sequence[str], state: str) -> dict[str, Tensor]:
        """How often (C,) each channel is in a state, by class."""
        names = sorted(set(labels) - {""})
        if not names:
            return {"all images": self.states[state].float().mean(0)}
        return {name: self.states[state][_rows(labels, name)].float().mean(0) for name in names}

    def to_json(self, labels: Sequence[str]) -> dict[str, Any]:
        """Its statistics."""
        quantiles = np.quantile(self.values.numpy(), QUANTILES).tolist()
        return {
            "layer": self.name,
            "channels": self.values.shape[1],
            "mean": float(self.values.mean()),
            "sd": float(self.values.std(correction=0)),
            "quantiles": dict(zip(map(str, QUANTILES), quantiles, strict=True)),
            "shares": self.shares,
            "saturated": self.saturated,
            "dead": self.dead,
            "spread_over_classes": self.spread_over_classes(labels),
        }


def _rows(labels: Sequence[str], name: str) -> list[bool]:
    return [label == name for label in labels]


def layer_gates(model: nn.Module, images: Tensor, batch_size: int) -> list[LayerGates]:
    """The gates of all layers that have some, in the order in which they run, on images (N, C, H, W)."""
    seen: dict[str, list[tuple[Tensor, dict[str, Tensor]]]] = {}

    def look(name: str, layer: SurgeryLayer, x: Tensor) -> None:
        gates = layer.gates(x)
        if gates is not None:
            states = {state: mask.cpu() for state, mask in gates.states.items()}
            seen.setdefault(name, []).append((gates.values.float().cpu(), states))

    watch_layers(model, "gates", images, batch_size, look)
    return [_joined(name, parts) for name, parts in seen.items()]


def _joined(name: str, parts: list[tuple[Tensor, dict[str, Tensor]]]) -> LayerGates:
    states = {state: torch.cat([masks[state] for _, masks in parts]) for state in parts[0][1]}
    return LayerGates(name, torch.cat([values for values, _ in parts]), states)
