"""Pictures of what networks do, as PNG."""

import io
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from surgery.explanation.picked import MIXED, Picked

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_CHANNELS = 3
LEAST_SHOWN = 1e-6  # of the highest score; lower ones are shown there


def png(figure: "Figure") -> bytes:
    """A figure as the content of a PNG file."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=110)
    return content.getvalue()


def shown_image(image: Tensor) -> np.ndarray:
    """(H, W, 3) of an image (C, H, W) with one channel, or with three, in [0, 1]."""
    pixels: np.ndarray = image[[0, 1, 2] if len(image) == 3 else [0, 0, 0]].permute(1, 2, 0).numpy()
    return pixels


def activation_picture(images: Tensor, columns: Mapping[str, tuple[np.ndarray, Sequence[str]]]) -> bytes:
    """Each image, and beside it, for each network, a map of what speaks for a class.

    Args:
        images: (N, C, H, W) in [0, 1].
        columns: by the network's name, maps (N, H, W) in [0, 1] and a title for each image.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2.6 * (1 + len(columns)), 2.8 * len(images)), layout="constrained")
    grid = figure.subplots(len(images), 1 + len(columns), squeeze=False)
    for number, image in enumerate(images):
        grid[number, 0].imshow(shown_image(image))
        for axes, (name, (maps, titles)) in zip(grid[number, 1:], columns.items(), strict=True):
            axes.imshow(shown_image(image))
            axes.imshow(maps[number], cmap="jet", alpha=0.45, vmin=0, vmax=1)
            axes.set_title(f"{name}: {textwrap.shorten(titles[number], 36, placeholder='…')}", fontsize=7)
    for axes in figure.axes:
        axes.set(xticks=[], yticks=[])
    return png(figure)


def picked_picture(image: Tensor, picked: Picked) -> bytes:
    """Of each layer some output channels: at every pixel which of its inputs a subset gives; grey where it mixes.

    The channels are those whose picks differ most from pixel to pixel.

    Args:
        image: (C, H, W) in [0, 1].
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(2.6 * (1 + MOST_CHANNELS) + 1, 2.6 * len(picked.positions)), layout="constrained")
    colours = colormaps["viridis"].with_extremes(under="lightgrey")
    rows = figure.subplots(len(picked.positions), 1 + MOST_CHANNELS, squeeze=False)
    for row, (name, positions) in zip(rows, picked.positions.items(), strict=True):
        row[0].imshow(shown_image(image))
        row[0].set_ylabel(name, fontsize=7)
        highest = max(1, picked.sizes[name] - 1)
        for axes, channel in zip(row[1:], _varied(positions), strict=False):
            drawn = axes.imshow(positions[channel].numpy(), cmap=colours, vmin=0, vmax=highest, interpolation="nearest")
            axes.set_title(f"output channel {channel}", fontsize=8)
        bar = figure.colorbar(drawn, ax=row[-1], extend="min", label="position in the subset; grey: mixed")
        bar.ax.yaxis.set_major_locator(MaxNLocator(integer=True))
        for axes in row[1 + len(positions) :]:
            axes.set_axis_off()
    for axes in rows.flat:
        axes.set(xticks=[], yticks=[])
    return png(figure)


def _varied(positions: Tensor) -> list[int]:
    """The output channels whose commonest position takes the fewest pixels, those that mix last."""

    def share_of_commonest(channel: int) -> float:
        pixels = positions[channel]
        return (
            2.0 if bool((pixels == MIXED).all()) else float(pixels.unique(return_counts=True)[1].max()) / pixels.numel()
        )

    return sorted(sorted(range(len(positions)), key=share_of_commonest)[:MOST_CHANNELS])


def widths_picture(widths: Sequence[tuple[str, int, int]]) -> bytes:
    """Channels of layers before (light) and after (dark) surgery, as bars (SFVR supplement, Fig. 2)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(6, 0.22 * len(widths) + 2), 4), layout="constrained")
    axes = figure.subplots()
    positions = range(len(widths))
    axes.bar(positions, [before for _, before, _ in widths], color="lightsteelblue", label="before")
    axes.bar(positions, [after for _, _, after in widths], color="tab:blue", label="after")
    axes.set_xticks(positions, [name for name, _, _ in widths], rotation=90, fontsize=6)
    axes.set_ylabel("output channels")
    axes.margins(x=0.01)
    axes.legend()
    return png(figure)


def scores_picture(scores: Mapping[str, np.ndarray], title: str) -> bytes:
    """Distributions over channels of several networks (SFVR supplement, Fig. 3), with their medians.

    Args:
        scores: by the network's name, positive ones.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    together = np.concatenate(list(scores.values()))
    bins = np.geomspace(max(together.min(), together.max() * LEAST_SHOWN), together.max() * 1.001, 50)
    for number, (name, values) in enumerate(scores.items()):
        median = float(np.median(values))
        label = f"{name}: {len(values)} channels, median {median:.3g}"
        shares = np.full(len(values), 1 / len(values))
        axes.hist(values.clip(bins[0]), bins=bins.tolist(), weights=shares, alpha=0.5, color=f"C{number}", label=label)
        axes.axvline(median, color=f"C{number}", linestyle="--", linewidth=1)
    axes.set(xscale="log", xlabel=title, ylabel="share of the channels")
    axes.legend(fontsize=8)
    return png(figure)
