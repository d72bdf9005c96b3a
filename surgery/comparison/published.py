"""Figures of papers, to be read beside ours: their networks, images and trainings are others."""

import json
from dataclasses import dataclass
from importlib import resources

from surgery.core.table import table


@dataclass(frozen=True)
class Published:
    """Top-1 accuracies in percent and MACs in 10⁹, before and after; None: not stated.

    Attributes:
        network: as timm names it.
        data: the recipe's ``data.name``.
    """

    method: str
    network: str
    data: str
    accuracy: tuple[float | None, float]
    macs: tuple[float, float] | None
    source: str


def published() -> list[Published]:
    """What ``published.json`` holds."""
    text = resources.files("surgery.comparison").joinpath("published.json").read_text()
    return [Published(**row) for row in json.loads(text)]


def published_text(network: str, data: str) -> str:
    """What papers report of the methods, what is of the same network and dataset first and marked."""
    ordered = sorted(published(), key=lambda row: not _same(row, network, data))
    cells = [
        (
            row.method,
            f"{row.network} on {row.data}",
            "" if row.macs is None else f"{row.macs[0]:g} → {row.macs[1]:g} G",
            f"{row.accuracy[0] if row.accuracy[0] is not None else '?'} → {row.accuracy[1]}",
            "yes" if _same(row, network, data) else "no",
            row.source,
        )
        for row in ordered
    ]
    return table(("published", "network", "MACs", "top-1 (%)", "same as here", "source"), cells)


def _same(row: Published, network: str, data: str) -> bool:
    return network.removeprefix("timm/") == row.network and data == row.data
