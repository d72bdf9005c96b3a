"""Pictures of what networks do, as PNG."""

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from surgery.explanation.layer_gates import LayerGates

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_LAYERS, MOST_IMAGES, MOST_CHANNELS = 8, 8, 3


def evenly(items: Sequence[LayerGates], most: int = MOST_LAYERS) -> list[LayerGates]:
    """At most so many, from the first to the last."""
    if len(items) <= most:
        return list(items)
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]


def gates_picture(layers: Sequence[LayerGates], labels: Sequence[str]) -> bytes:
    """A row for each layer: its gates' distribution, their means by channel with the range over classes, its states."""
    from matplotlib.figure import Figure

    shown = evenly(layers)
    figure = Figure(figsize=(11, 1.2 + 1.5 * len(shown)), layout="constrained")
    for row, layer in zip(figure.subplots(len(shown), 3, squeeze=False), shown, strict=True):
        row[0].hist(layer.values.flatten().numpy(), bins=60, color="tab:blue")
        row[0].set(yscale="log", ylabel=layer.name)
        row[0].yaxis.label.set(fontsize=7)
        _draw_channels(row[1], layer, labels)
        left = 0.0
        for state, share in layer.shares.items():
            row[2].barh([0], [share], left=[left], label=f"{state} {share:.2f}")
            left += share
        row[2].set(xlim=(0, 1), yticks=[])
        row[2].legend(fontsize=7, loc="center")
    for axes, title in zip(
        figure.axes[:3], ("gate, all images", "mean by channel, range over classes", "share"), strict=True
    ):
        axes.set_title(title, fontsize=9)
    return _png(figure)


def _draw_channels(axes: "Axes", layer: LayerGates, labels: Sequence[str]) -> None:
    """Channels in the order of their mean gates."""
    mean = layer.values.mean(0)
    order, positions = mean.argsort(), range(len(mean))
    means = [values[order].numpy() for values in layer.class_means(labels).values()]
    if len(means) > 1:
        axes.fill_between(positions, np.min(means, 0), np.max(means, 0), alpha=0.3, color="tab:orange")
    axes.plot(positions, mean[order].numpy(), color="black", linewidth=1)


def channels_by_class_picture(layers: Sequence[LayerGates], labels: Sequence[str], state: str) -> bytes:
    """For a layer in the middle and the last: how often a channel is in a state (colour), class by class."""
    from matplotlib.figure import Figure

    shown = list(dict.fromkeys((len(layers) // 2, len(layers) - 1)))
    figure = Figure(figsize=(11, 0.8 + 2.8 * len(shown)), layout="constrained")
    for axes, number in zip(figure.subplots(len(shown), 1, squeeze=False)[:, 0], shown, strict=True):
        by_class = layers[number].kept_by_class(labels, state)
        shares = torch.stack(list(by_class.values()))
        order = shares.mean(0).argsort(descending=True)
        drawn = axes.imshow(shares[:, order].numpy(), aspect="auto", vmin=0, vmax=1, interpolation="nearest")
        axes.set_yticks(range(len(by_class)), list(by_class), fontsize=6)
        axes.set(title=f"{layers[number].name}: share of a class's images on which a channel is {state}")
        figure.colorbar(drawn, ax=axes)
    return _png(figure)


def picked_picture(image: Tensor, layers: Mapping[str, tuple[Tensor, int]]) -> bytes:
    """Of each layer some output channels: at every pixel which of its inputs a subset gives; grey where it mixes.

    Args:
        image: (C, H, W), as the network takes it.
        layers: by name, picked channels (C_out, H', W'), −1 where mixed, and the number of input channels.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2.6 * (1 + MOST_CHANNELS), 2.5 * len(layers)), layout="constrained")
    colours = colormaps["viridis"].with_extremes(under="lightgrey")
    rows = figure.subplots(len(layers), 1 + MOST_CHANNELS, squeeze=False)
    for row, (name, (picked, _)) in zip(rows, layers.items(), strict=True):
        row[0].imshow(shown_image(image))
        row[0].set_ylabel(name, fontsize=7)
        chosen = (picked >= 0).float().mean((1, 2)).argsort(descending=True, stable=True)[:MOST_CHANNELS]
        for axes, channel in zip(row[1:], chosen.tolist(), strict=False):
            positions = _positions(picked[channel])
            axes.imshow(positions.numpy(), cmap=colours, vmin=0, vmax=max(1, int(positions.max())))
            axes.set_title(f"output {channel}", fontsize=8)
    for axes in figure.axes:
        axes.set(xticks=[], yticks=[])
    return _png(figure)


def _positions(picked: Tensor) -> Tensor:
    """Places of channels among those of them that occur; −1 stays."""
    occurring = picked[picked >= 0].unique()
    return torch.where(picked < 0, -1, torch.searchsorted(occurring, picked.clamp_min(0)))


def widths_picture(widths: Sequence[tuple[str, int, int]]) -> bytes:
    """Channels of layers before (light) and after (dark) surgery, as bars."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(6, 0.22 * len(widths) + 2), 4), layout="constrained")
    axes = figure.subplots()
    positions = range(len(widths))
    axes.bar(positions, [before for _, before, _ in widths], color="lightsteelblue", label="before")
    axes.bar(positions, [after for _, _, after in widths], color="tab:blue", label="after")
    axes.set_xticks(positions, [name for name, _, _ in widths], rotation=90, fontsize=6)
    axes.set_ylabel("output channels")
    axes.legend()
    return _png(figure)


def scores_picture(scores: Mapping[str, np.ndarray], title: str) -> bytes:
    """Distributions over channels, of several networks on common logarithmic bins."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    logs = {name: np.log10(np.maximum(values, 1e-8)) for name, values in scores.items()}
    low, high = min(v.min() for v in logs.values()), max(v.max() for v in logs.values())
    bins = np.linspace(low, high + 1e-6, 50).tolist()
    for name, values in logs.items():
        axes.hist(values, bins=bins, alpha=0.6, label=f"{name}: {len(values)} channels")
    axes.set(xlabel=f"log₁₀ {title}", ylabel="channels")
    axes.legend()
    return _png(figure)


def activation_picture(images: Tensor, columns: Mapping[str, tuple[np.ndarray, Sequence[str]]]) -> bytes:
    """Each image, and beside it, for each network, a map of what speaks for a class.

    Args:
        images: (N, C, H, W).
        columns: by the network's name, maps (N, H, W) in [0, 1] and a title for each image.
    """
    from matplotlib.figure import Figure

    shown = images[:MOST_IMAGES]
    figure = Figure(figsize=(2.6 * (1 + len(columns)), 2.8 * len(shown)), layout="constrained")
    grid = figure.subplots(len(shown), 1 + len(columns), squeeze=False)
    for number, image in enumerate(shown):
        grid[number, 0].imshow(shown_image(image))
        for axes, (name, (maps, titles)) in zip(grid[number, 1:], columns.items(), strict=True):
            axes.imshow(shown_image(image))
            axes.imshow(maps[number], cmap="jet", alpha=0.45, vmin=0, vmax=1)
            axes.set_title(f"{name}: {titles[number]}", fontsize=7)
    for axes in figure.axes:
        axes.set(xticks=[], yticks=[])
    return _png(figure)


def shown_image(image: Tensor) -> np.ndarray:
    """(H, W, 3) in [0, 1] of an image (C, H, W) that was normalised, whatever by."""
    low, high = image.amin((1, 2), keepdim=True), image.amax((1, 2), keepdim=True)
    scaled = ((image - low) / (high - low).clamp_min(1e-6)).permute(1, 2, 0)
    return scaled.expand(-1, -1, 3).numpy() if scaled.shape[2] == 1 else scaled.numpy()


def _png(figure: "Figure") -> bytes:
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=110)
    return content.getvalue()
