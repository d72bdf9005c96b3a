"""What surgery layers decide for a set of images: values of their gates and states, and statistics of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from surgery.core.eval_mode import eval_mode
from surgery.core.surgery_layer import SurgeryLayer

LOW, HIGH = 0.02, 0.98  # a gate in [0, 1] is saturated below and above


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
    def dead(self) -> float:
        """Share of the channels that are in one state on all images."""
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

    def spread_over_classes(self, labels: Sequence[str]) -> float | None:
        """Variance of the means of classes ÷ variance over all images, mean over the channels.

        None for one class, or fewer than two images for each: their means would differ by chance.
        """
        means = self.class_means(labels)
        if len(means) < 2 or sum(bool(label) for label in labels) < 2 * len(means):
            return None
        labelled = self.values[[bool(label) for label in labels]]
        between = torch.stack(list(means.values())).var(0, correction=0)
        return float((between / labelled.var(0, correction=0).clamp_min(1e-12)).clamp_max(1).mean())

    def kept_by_class(self, labels: Sequence[str], state: str) -> dict[str, Tensor]:
        """How often (C,) each channel is in a state, by class."""
        names = sorted(set(labels) - {""}) or [""]
        return {name: self.states[state][_rows(labels, name)].float().mean(0) for name in names}

    def to_json(self, labels: Sequence[str]) -> dict[str, Any]:
        """Its statistics."""
        quantiles = torch.quantile(self.values.flatten()[:1_000_000], torch.tensor([0.05, 0.5, 0.95])).tolist()
        return {
            "layer": self.name,
            "channels": self.values.shape[1],
            "mean": float(self.values.mean()),
            "sd": float(self.values.std()) if self.values.numel() > 1 else 0.0,
            "quantiles": dict(zip(("0.05", "0.5", "0.95"), quantiles, strict=True)),
            "shares": self.shares,
            "saturated": self.saturated,
            "dead": self.dead,
            "spread_over_classes": self.spread_over_classes(labels),
        }


def _rows(labels: Sequence[str], name: str) -> list[bool]:
    return [label == name for label in labels]


def layer_gates(model: nn.Module, images: Tensor, batch_size: int) -> list[LayerGates]:
    """The gates of all layers that have some, in the order of the model, on images (N, C, H, W)."""
    seen: dict[str, list[tuple[Tensor, dict[str, Tensor]]]] = {}
    hooks = [
        layer.register_forward_pre_hook(_noting(name, seen))
        for name, layer in model.named_modules()
        if isinstance(layer, SurgeryLayer) and type(layer).gates is not SurgeryLayer.gates
    ]
    weight = next(model.parameters())
    try:
        with eval_mode(model), torch.no_grad():
            for batch in tqdm(images.split(batch_size), "gates", leave=False, disable=not hooks):
                model(batch.to(weight))
    finally:
        for hook in hooks:
            hook.remove()
    return [_joined(name, parts) for name, parts in seen.items()]


def _noting(name: str, seen: dict[str, list[tuple[Tensor, dict[str, Tensor]]]]) -> Any:
    def note(layer: SurgeryLayer, arguments: tuple[Tensor, ...]) -> None:
        gates = layer.gates(arguments[0])
        if gates is not None:
            states = {state: mask.cpu() for state, mask in gates.states.items()}
            seen.setdefault(name, []).append((gates.values.float().cpu(), states))

    return note


def _joined(name: str, parts: list[tuple[Tensor, dict[str, Tensor]]]) -> LayerGates:
    states = {state: torch.cat([masks[state] for _, masks in parts]) for state in parts[0][1]}
    return LayerGates(name, torch.cat([values for values, _ in parts]), states)
