"""Feature maps made smaller and larger by powers of two."""

from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate, max_pool2d


def halved(size: tuple[int, int], times: int) -> tuple[int, int]:
    """Height and width after so many halvings, rounded up; doubled where ``times`` is negative."""
    if times < 0:
        return size[0] << -times, size[1] << -times
    return -(-size[0] >> times), -(-size[1] >> times)


def smaller(x: Tensor, times: int, pooling: str) -> Tensor:
    """(N, C, H, W) to (N, C, ⌈H / 2^times⌉, ⌈W / 2^times⌉) by ``max`` or ``average`` pooling.

    Windows that reach beyond the edge pool what they have of the map.
    """
    if not times:
        return x
    if pooling == "max":
        return max_pool2d(x, 1 << times, ceil_mode=True)
    return avg_pool2d(x, 1 << times, ceil_mode=True, count_include_pad=False)


def larger(x: Tensor, times: int, size: tuple[int, int], upsampling: str) -> Tensor:
    """(N, C, H, W) to (N, C, H · 2^times, W · 2^times), cut to ``size``: ``bilinear`` (corners not aligned) or
    ``nearest``.
    """
    if not times:
        return x
    whole = (x.shape[-2] << times, x.shape[-1] << times)
    options = {"align_corners": False} if upsampling == "bilinear" else {}
    enlarged = interpolate(x, whole, mode=upsampling, **options)
    return enlarged if whole == size else enlarged[..., : size[0], : size[1]]
