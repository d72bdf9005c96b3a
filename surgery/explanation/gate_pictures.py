"""Pictures of gates: of layers, by their distributions (supplement of FACS, Fig. 4), and of channels by class."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from surgery.explanation.layer_gates import LayerGates
from surgery.explanation.pictures import png
from surgery.explanation.surgery_calls import shown_layers

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_LAYERS, BINS = 16, 60
TITLES = ("gates of all images and channels", "mean by channel ± sd of class means", "sd of class means ÷ sd of all")


def gates_picture(layers: Sequence[LayerGates], labels: Sequence[str]) -> bytes:
    """A row for each layer: its gates' distribution by state, their means by channel, their spread over classes.

    Without two images a class there are neither class means nor the last column.
    """
    from matplotlib.figure import Figure

    names = shown_layers([layer.name for layer in layers], MOST_LAYERS)
    shown = [layer for layer in layers if layer.name in names]
    columns = 2 if shown[0].between_classes(labels) is None else 3
    figure = Figure(figsize=(4.2 * columns, 0.8 + 1.5 * len(shown)), layout="constrained")
    rows = figure.subplots(len(shown), columns, squeeze=False)
    for row, layer in zip(rows, shown, strict=True):
        _draw_distribution(row[0], layer)
        _draw_channels(row[1:], layer, labels)
        for axes in row:
            axes.tick_params(labelsize=7)
    titles = TITLES if columns == 3 else (TITLES[0], "mean by channel")
    for axes, title in zip(rows[0], titles, strict=True):
        axes.set_title(title, fontsize=9)
    for axes in rows[-1, 1:]:
        axes.set_xlabel("channels, by mean", fontsize=8)
    return png(figure)


def _draw_distribution(axes: "Axes", layer: LayerGates) -> None:
    """Shares of all values, on a logarithmic axis, for a state may be rare."""
    values, count = layer.values, layer.values.numel()
    low, high = float(values.min()), float(values.max())
    bins = np.linspace(min(low, 0.0), max(high, 1.0), BINS + 1).tolist()
    states = {state: values[mask].numpy() for state, mask in layer.states.items()} or {"": values.flatten().numpy()}
    axes.hist(
        list(states.values()),
        bins=bins,
        weights=[np.full(len(of_state), 1 / count) for of_state in states.values()],
        stacked=True,
        label=[f"{state} {100 * len(of_state) / count:.0f} %" for state, of_state in states.items()],
        color=[f"C{number}" for number in range(len(states))],
    )
    axes.set(yscale="log", ylim=(0.5 / count, 2))
    axes.minorticks_off()
    axes.set_ylabel(layer.name, fontsize=7)
    axes.legend(fontsize=7, loc="upper center", ncols=2, framealpha=0.6)


def _draw_channels(columns: Sequence["Axes"], layer: LayerGates, labels: Sequence[str]) -> None:
    """Channels in the order of their mean gates: the means; and where classes can be told apart, the spread."""
    mean = layer.values.mean(0)
    order, positions = mean.argsort(), range(len(mean))
    between, spread = layer.between_classes(labels), layer.spread_by_channel(labels)
    if between is not None and spread is not None:
        deviation = between.sqrt()
        low, high = ((mean + sign * deviation)[order].numpy() for sign in (-1, 1))
        columns[0].fill_between(positions, low, high, alpha=0.4, color="tab:orange")
        columns[1].plot(positions, spread.sqrt()[order].numpy(), ".", markersize=2, color="black")
        columns[1].set_ylim(-0.05, 1.05)
    columns[0].plot(positions, mean[order].numpy(), color="black", linewidth=1)


def channels_by_class_picture(layers: Sequence[LayerGates], labels: Sequence[str], state: str) -> bytes:
    """For a layer in the middle and the last: how often a channel is in a state (colour), class by class."""
    from matplotlib.figure import Figure

    shown = list(dict.fromkeys((len(layers) // 2, len(layers) - 1)))
    by_class = [layers[number].kept_by_class(labels, state) for number in shown]
    height = max(2.4, 0.12 * len(by_class[0]))
    width = min(24, max(11, 2 + max(layers[number].values.shape[1] for number in shown) / 100))  # a pixel a channel
    figure = Figure(figsize=(width, 0.8 + (height + 0.5) * len(shown)), layout="constrained")
    for axes, number, kept in zip(figure.subplots(len(shown), 1, squeeze=False)[:, 0], shown, by_class, strict=True):
        shares = torch.stack(list(kept.values()))
        order = shares.mean(0).argsort(descending=True)
        drawn = axes.imshow(shares[:, order].numpy(), aspect="auto", vmin=0, vmax=1, interpolation="nearest")
        axes.set_yticks(range(len(kept)), [name[:24] for name in kept], fontsize=6)
        axes.set_title(f"{layers[number].name}: share of a class's images on which a channel is {state}", fontsize=9)
        axes.set_xlabel(f"channels, most often {state} first", fontsize=8)
        figure.colorbar(drawn, ax=axes)
    return png(figure)
