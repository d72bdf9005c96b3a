"""What a network that mimics another is to give as the other gives it."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from surgery.core.bfloat16 import computes_in_bfloat16
from surgery.core.checked_model import first_weight
from surgery.graph.trees import tensors_in
from surgery.mimicry.common_blocks import common_blocks, recorded_outputs
from surgery.mimicry.feature_map import common_feature_map, watched
from surgery.mimicry.map_error import share_of_variance
from surgery.mimicry.settings import MimicrySettings

Outputs = tuple[Tensor, Tensor | None, dict[str, list[Tensor]]]  # logits, the map before pooling, what blocks give


class Matching:
    """Logits, the feature map before pooling, and the blocks around what was converted.

    Args:
        shape: (C, H, W) of an image.

    Attributes:
        features: place of the map before pooling; None where the networks have no common one.
        blocks: names of the modules.
        note: why there is no such place, or no block although blocks are wanted; else "".
    """

    def __init__(self, model: nn.Module, teacher: nn.Module, shape: tuple[int, ...], settings: MimicrySettings) -> None:
        self.model, self.teacher, self.settings = model, teacher, settings
        weight = first_weight(model)
        self.features, self.note = common_feature_map(model, teacher, shape)
        self.blocks: list[str] = []
        if settings.block_weight:
            self.blocks, reason = _blocks(model, teacher, torch.zeros(2, *shape).to(weight))
            self.note = "; ".join(filter(None, (self.note, reason)))
        self.fast = weight.dtype == torch.float32 and computes_in_bfloat16(weight.device)

    def loss(self, images: Tensor) -> Tensor:
        """Divergence of the logits and the errors of the maps, as ``settings`` weigh them; a scalar."""
        settings = self.settings
        with torch.no_grad():
            own_logits, own_map, own_blocks = self._forward(self.teacher, images)
        logits, feature_map, blocks = self._forward(self.model, images)
        loss = F.kl_div(F.log_softmax(logits, 1), F.log_softmax(own_logits, 1), reduction="none", log_target=True)
        total = loss.sum(1).mean()
        if own_map is not None and feature_map is not None and settings.feature_weight:
            total = total + settings.feature_weight * share_of_variance(feature_map, own_map)
        if self.blocks:
            errors = [share_of_variance(blocks[name][0], own_blocks[name][0]) for name in self.blocks]
            total = total + (settings.block_weight or 0.0) * torch.stack(errors).mean()
        return total

    def _forward(self, network: nn.Module, images: Tensor) -> Outputs:
        with (
            watched(network, self.features) as maps,
            recorded_outputs(network, self.blocks) as blocks,
            torch.autocast(images.device.type, torch.bfloat16, self.fast),
        ):
            logits = next(tensors_in(network(images)))
        return logits.float(), maps[-1] if maps else None, blocks


def _blocks(model: nn.Module, teacher: nn.Module, images: Tensor) -> tuple[list[str], str]:
    """Names, or the reason why there is none."""
    try:
        names = common_blocks(model, teacher, images)
    except ValueError as error:  # nothing was converted, or channels are in different orders
        return [], f"no block: {error}"
    return names, "" if names else "no block: all maps around changed layers have other shapes"
