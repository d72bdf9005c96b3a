"""Figures of papers, to be read beside ours: their networks, images and trainings are others."""

from dataclasses import dataclass

from surgery.core.table import table

FACS = "FACS and PiX papers"


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


PUBLISHED = (
    Published("pix", "resnet50", "cifar10", (95.57, 95.67), None, f"{FACS}, transfer, 200 epochs"),
    Published("pix", "resnet50", "cifar100", (81.60, 82.22), None, f"{FACS}, transfer, 200 epochs"),
    Published("pix", "resnet50", "imagenet", (76.30, 76.77), (4.12, 3.18), f"{FACS}, 120 epochs from scratch"),
    Published("pix", "resnet101", "imagenet", (77.21, 77.96), (7.85, 6.05), f"{FACS}, 120 epochs from scratch"),
    Published("pix", "resnet152", "imagenet", (77.78, 78.12), (11.58, 8.91), f"{FACS}, 120 epochs from scratch"),
    Published("pix", "mobilenetv2_100", "imagenet", (71.80, 71.13), (0.32, 0.25), f"{FACS}, 120 epochs from scratch"),
    Published("dwp", "resnet50", "imagenet", (76.30, 74.62), None, f"{FACS}, Table 2"),
)


def published_text(network: str, data: str) -> str:
    """What papers report of the methods, what is of the same network and dataset first and marked."""
    ordered = sorted(PUBLISHED, key=lambda row: not _same(row, network, data))
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
