"""Which channel of its subset an output takes at each pixel, of the image on which layers pick most."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from tqdm import tqdm

from surgery.core.surgery_layer import SurgeryLayer
from surgery.explanation.surgery_calls import last_of_stages, watch_layers
from surgery.transforms.subsets import subset_members

MIXED = -1
_Map = tuple[Tensor, int]  # picked channels (C_out, H, W) of one image, and how many there are to pick from


@dataclass(frozen=True)
class Picked:
    """What layers pick on one image.

    Attributes:
        image: its number.
        positions: by layer, (C_out, H, W): the position inside the subset, −1 where it is mixed.
        sizes: by layer, channels of its largest subset.
    """

    image: int
    positions: dict[str, Tensor]
    sizes: dict[str, int]


def most_picked(model: nn.Module, images: Tensor) -> Picked | None:
    """Of the last layer of each stage that picks and gives more than one pixel, on one of the images (N, C, H, W).

    None where no layer picks on any image.
    """
    best: tuple[float, int, dict[str, _Map]] = (0.0, 0, {})
    for number, image in enumerate(tqdm(images, "picked channels", unit="image", leave=False)):
        maps = _maps_of(model, image)
        shown = {name: maps[name] for name in last_of_stages(list(maps))}
        share = sum(float((picked != MIXED).float().mean()) for picked, _ in shown.values())
        best = max(best, (share, number, shown), key=lambda entry: entry[0])
    share, number, shown = best
    if not share:
        return None
    positions = {name: subset_positions(picked, channels) for name, (picked, channels) in shown.items()}
    return Picked(number, positions, {name: -(-channels // len(picked)) for name, (picked, channels) in shown.items()})


def _maps_of(model: nn.Module, image: Tensor) -> dict[str, _Map]:
    maps: dict[str, _Map] = {}

    def look(name: str, layer: SurgeryLayer, x: Tensor) -> None:
        picked = layer.picked_channels(x)
        if picked is not None and min(picked.shape[2:]) > 1:
            maps[name] = picked[0].cpu(), x.shape[1]

    watch_layers(model, "picked_channels", image[None], 1, look)
    return maps


def subset_positions(picked: Tensor, channels: int) -> Tensor:
    """Positions inside their subsets of picked input channels, −1 where mixed.

    A layer does not say whether its subsets are runs or strided: they are runs where each output picks from its run.

    Args:
        picked: (C_out, H, W) numbers of input channels, −1 where mixed.
        channels: C_in.
    """
    for grouping in ("contiguous", "strided"):
        members = subset_members(channels, len(picked), grouping)
        position = torch.full((len(picked), channels + 1), MIXED - 1)
        for output, subset in enumerate(members):
            position[output, subset] = torch.arange(len(subset))
        position[:, -1] = MIXED  # index −1
        places = position.gather(1, (picked % (channels + 1)).flatten(1)).reshape(picked.shape)
        if bool((places >= MIXED).all()):
            return places
    return picked
