"""Random crops and mirrored images, as tensors in the batch."""

import torch
import torch.nn.functional as F
from torch import Tensor


def augmented(images: Tensor, crop: float, hflip: bool, generator: torch.Generator) -> Tensor:
    """A random crop of every image (N, C, H, W), enlarged to the whole, and mirrored in half of the cases.

    Args:
        crop: least share of its area.
    """
    count = len(images)

    def uniform() -> Tensor:
        return torch.rand(count, generator=generator)

    side = (crop + (1 - crop) * uniform()).sqrt()
    across, down = ((2 * uniform() - 1) * (1 - side) for _ in range(2))
    mirror = torch.where(uniform() < 0.5, -1.0, 1.0) if hflip else torch.ones(count)
    if crop == 1:
        return torch.where((mirror < 0)[:, None, None, None].to(images.device), images.flip(3), images)
    zero = torch.zeros(count)
    rows = torch.stack([torch.stack([side * mirror, zero, across], 1), torch.stack([zero, side, down], 1)], 1)
    grid = F.affine_grid(rows.to(images), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
